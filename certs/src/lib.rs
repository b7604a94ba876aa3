//! Who a mesh node is, as X.509 says it: a small certificate authority, and identities read from files.
//!
//! A node's certificate carries its name as a SAN; [`NodeNames`] is the one rule that says which names a certificate
//! may speak for. [`Authority`] mints certificates by that rule; [`Identity`] reads them, and those that cert-manager
//! or an existing PKI made, as three files: `tls.crt` (the certificate, then its intermediates), `tls.key` (PKCS#8,
//! SEC1 or PKCS#1) and `ca.crt` (every authority that is trusted). [`check_chain`] asks the same verifiers that a TLS
//! handshake asks, so what passes here passes there. [`Material`] is an identity in use by the mesh, [`ServerMaterial`]
//! what clients are shown, [`ClientMaterial`] what workers are shown and believed by; all are replaced while connections
//! use them.
//!
//! Nothing here reads a clock: the instant is an argument. All cryptography is aws-lc-rs, through rustls and rcgen.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod allow_list;
mod authority;
mod calling;
mod certificate;
mod chain;
mod files;
mod identity;
mod key;
mod material;
mod names;
mod serving;
mod write;

pub use self::{
    allow_list::{AllowList, AllowListError},
    authority::{AUTHORITY_DAYS_MAX, Authority, IssueError, Issued, NODE_DAYS_DEFAULT, NODE_DAYS_MAX, NodeRequest},
    calling::{ClientFiles, ClientMaterial},
    certificate::{Certificate, MalformedCertificate, rfc3339},
    chain::{ChainError, ValidityError, check_chain},
    files::{FILE_BYTES_MAX, LoadError, read_certificates},
    identity::{Identity, IdentityError, IdentityFiles},
    key::PrivateKey,
    material::{CheckedPeer, Material, MaterialError},
    names::{AllowedNodes, MeshName, NodeNames},
    serving::{PairFiles, ServerMaterial, clients_of},
    write::{NewFile, WriteError, write_files},
};

#[cfg(test)]
mod tests;
