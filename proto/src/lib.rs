//! Wire messages of the smg mesh: generated code and nothing else.
//!
//! The `.proto` files beside this crate carry the unit and range of every field. Conversions to the mesh's own types
//! live in `smg::mesh::wire`, the one decoder of mesh bytes; the stream plane's messages are read by
//! `smg-transport` alone.

/// The stream plane: pipes between nodes, their frames and greetings.
pub mod stream {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
    tonic::include_proto!("smg.stream.v1");
}

/// The datagram plane: SWIM messages.
pub mod membership {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
    tonic::include_proto!("smg.membership.v1");
}

/// Replication frames: digests, deltas, snapshots, acks.
pub mod replication {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
    tonic::include_proto!("smg.replication.v1");
}

/// Routing hints: loads and placements.
pub mod routing {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
    tonic::include_proto!("smg.routing.v1");
}

/// Payloads of the replicated stores.
pub mod state {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
    tonic::include_proto!("smg.state.v1");
}

/// What nodes say to each other to coordinate: elections.
pub mod coordination {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
    tonic::include_proto!("smg.coordination.v1");
}
