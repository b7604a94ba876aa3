//! Which node names a certificate may speak for.
//!
//! A certificate names node `n` of cluster `c` when one of its SANs is
//! - the URI `spiffe://c/mesh/n`, byte for byte; or
//! - a DNS name that is `n`, or that begins with `n` and a dot, as in a headless Service. Letter case counts: `N1` and
//!   `n1` are two nodes.
//!
//! A DNS name says nothing of the cluster. So where a certificate has mesh URIs at all, its DNS names count only in the
//! clusters of those URIs: a certificate minted for one cluster is worth nothing in another that trusts the same CA.

use std::collections::BTreeSet;

/// Longest node name in bytes, as in the mesh.
pub(crate) const NODE_BYTES_MAX: usize = 128;

/// Longest cluster label in bytes, as in the mesh.
pub(crate) const CLUSTER_BYTES_MAX: usize = 64;

/// The mesh names in the SANs of one certificate.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct NodeNames {
    /// From URIs.
    uris: Vec<(String, String)>,
    dns: Vec<String>,
}

/// The only nodes of a cluster that are let in, whatever else its authorities have signed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowedNodes {
    /// The cluster.
    pub cluster: String,
    /// Their names.
    pub nodes: BTreeSet<String>,
}

/// A node that a certificate names.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct MeshName {
    /// The cluster, or none when the certificate leaves it open.
    pub cluster: Option<String>,
    /// The node.
    pub node: String,
}

impl NodeNames {
    /// Takes from URI and DNS SANs what names nodes, and leaves the rest.
    #[must_use]
    pub fn new(uris: &[String], dns: &[String]) -> Self {
        let is_host = |name: &&String| !name.starts_with('.') && name.bytes().all(|byte| byte.is_ascii_graphic());
        Self {
            uris: uris.iter().filter_map(|uri| mesh_uri(uri)).collect(),
            // A wildcard stands for hosts, never for a node.
            dns: dns.iter().filter(is_host).filter(|name| !name.contains('*')).cloned().collect(),
        }
    }

    /// Whether these may speak for every node that `others` list.
    #[must_use]
    pub fn covers(&self, others: &Self) -> bool {
        let mut listed = others.listed().into_iter();
        listed.all(|name| match &name.cluster {
            Some(cluster) => self.allow(cluster, &name.node),
            None => self == others,
        })
    }

    /// Whether the certificate may speak for this node of this cluster.
    #[must_use]
    pub fn allow(&self, cluster: &str, node: &str) -> bool {
        if !is_node_name(node) {
            return false;
        }
        if self.uris.iter().any(|(of, name)| of == cluster && name == node) {
            return true;
        }
        let is_here = self.uris.is_empty() || self.uris.iter().any(|(of, _)| of == cluster);
        is_here && self.dns.iter().any(|dns| is_dns_of(dns, node))
    }

    /// Of these names only those on a list: the rest may no longer be spoken for. Empty when none is on it.
    #[must_use]
    pub fn only(&self, allowed: &AllowedNodes) -> Self {
        let named = allowed.nodes.iter().filter(|node| self.allow(&allowed.cluster, node));
        Self { uris: named.map(|node| (allowed.cluster.clone(), node.clone())).collect(), dns: Vec::new() }
    }

    /// Whether no node is named at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.uris.is_empty() && self.dns.is_empty()
    }

    /// The nodes a person would read from the certificate, sorted: those of its URIs, and each DNS name as it stands
    /// and up to its first dot. [`NodeNames::allow`] accepts these, and of a DNS name also what ends at a later dot.
    #[must_use]
    pub fn listed(&self) -> Vec<MeshName> {
        let mut clusters: Vec<_> = self.uris.iter().map(|(cluster, _)| Some(cluster.clone())).collect();
        if clusters.is_empty() {
            clusters.push(None);
        }
        let of_uris = self.uris.iter().map(|(cluster, node)| (Some(cluster.clone()), node.clone()));
        let of_dns = self.dns.iter().flat_map(|dns| {
            let first = dns.split('.').next().unwrap_or(dns);
            let nodes = [dns.trim_end_matches('.'), first].into_iter().filter(|node| is_node_name(node));
            nodes.flat_map(|node| clusters.iter().map(move |cluster| (cluster.clone(), node.to_owned())))
        });
        let mut listed: Vec<_> = of_uris.chain(of_dns).map(|(cluster, node)| MeshName { cluster, node }).collect();
        listed.sort();
        listed.dedup();
        listed
    }
}

fn is_dns_of(dns: &str, node: &str) -> bool {
    dns.strip_prefix(node).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Cluster and node of `spiffe://<cluster>/mesh/<node>`. A node has no `/`, so the last `/mesh/` is the one meant.
fn mesh_uri(uri: &str) -> Option<(String, String)> {
    let (cluster, node) = uri.strip_prefix("spiffe://")?.rsplit_once("/mesh/")?;
    (is_cluster_label(cluster) && is_node_name(node)).then(|| (cluster.to_owned(), node.to_owned()))
}

/// 1 to 128 ASCII letters, digits, `.`, `_` and `-`.
pub(crate) fn is_node_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NODE_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain)
}

/// 1 to 64 visible ASCII characters.
pub(crate) fn is_cluster_label(text: &str) -> bool {
    (1..=CLUSTER_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(uris: &[&str], dns: &[&str]) -> NodeNames {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        NodeNames::new(&owned(uris), &owned(dns))
    }

    #[test]
    fn sans_decide_who_may_say_what() {
        let longest = "n".repeat(NODE_BYTES_MAX);
        let longest_uri = format!("spiffe://smg/mesh/{longest}");
        for (case, uris, dns, node, allowed) in [
            ("uri", &["spiffe://smg/mesh/n1"][..], &[][..], "n1", true),
            ("uri of another node", &["spiffe://smg/mesh/n9"], &[], "n1", false),
            ("uri of another cluster", &["spiffe://prod/mesh/n1"], &[], "n1", false),
            ("uri of a cluster with our name in front", &["spiffe://smg2/mesh/n1"], &[], "n1", false),
            ("uri with a path before", &["spiffe://smg/x/mesh/n1"], &[], "n1", false),
            ("uri with a path behind", &["spiffe://smg/mesh/n1/x"], &[], "n1", false),
            ("uri, scheme in capitals", &["SPIFFE://smg/mesh/n1"], &[], "n1", false),
            ("uri, other case", &["spiffe://smg/mesh/N1"], &[], "n1", false),
            ("uri with a prefix of the name", &["spiffe://smg/mesh/n1"], &[], "n", false),
            ("uri has no domain rule", &["spiffe://smg/mesh/n1.svc"], &[], "n1", false),
            ("uri of the longest name", &[&longest_uri], &[], &longest, true),
            ("uri without name", &["spiffe://smg/mesh/"], &[], "", false),
            ("second uri", &["spiffe://smg/mesh/n9", "spiffe://smg/mesh/n1"], &[], "n1", true),
            ("dns", &[], &["n1"], "n1", true),
            ("dns of a headless service", &[], &["n1.smg-mesh.default.svc"], "n1", true),
            ("dns of a pod name with its domain", &[], &["smg-0.smg-mesh.default.svc"], "smg-0.smg-mesh", true),
            ("dns absolute", &[], &["n1."], "n1", true),
            ("dns, prefix without dot", &[], &["n10"], "n1", false),
            ("dns, suffix", &[], &["x.n1"], "n1", false),
            ("dns, other case", &[], &["N1"], "n1", false),
            ("dns shorter than the name", &[], &["n1"], "n1.svc", false),
            ("wildcard", &[], &["*.svc"], "n1", false),
            ("wildcard as a name", &[], &["*"], "*", false),
            ("leading dot", &[], &[".n1"], "", false),
            ("control character", &[], &["n1.\u{7}"], "n1", false),
            ("empty", &[], &[""], "", false),
            ("nothing", &[], &[], "n1", false),
            ("dns beside a uri of this cluster", &["spiffe://smg/mesh/n9"], &["n1"], "n1", true),
            ("dns beside a uri of another cluster", &["spiffe://prod/mesh/n1"], &["n1"], "n1", false),
            ("dns beside a uri of something else", &["spiffe://cluster.local/ns/x/sa/y"], &["n1"], "n1", true),
        ] {
            assert_eq!(names(uris, dns).allow("smg", node), allowed, "{case}");
        }
    }

    #[test]
    fn a_cluster_label_with_slashes_keeps_its_own_names() {
        let odd = names(&["spiffe://a/mesh/b/mesh/n1"], &[]);
        assert!(odd.allow("a/mesh/b", "n1"));
        assert!(!odd.allow("a", "n1"));
        assert!(!odd.allow("a", "b/mesh/n1"));
    }

    #[test]
    fn a_list_leaves_of_the_names_only_what_is_on_it() {
        let on_list = ["n1", "n1.svc", "n3"].map(str::to_owned).into();
        let allowed = AllowedNodes { cluster: "smg".to_owned(), nodes: on_list };
        for (case, uris, dns, expected) in [
            ("uri on the list", &["spiffe://smg/mesh/n1"][..], &[][..], &["n1"][..]),
            ("uri not on it", &["spiffe://smg/mesh/n2"], &[], &[]),
            ("uri of another cluster", &["spiffe://prod/mesh/n1"], &["n1"], &[]),
            ("one of two", &["spiffe://smg/mesh/n2", "spiffe://smg/mesh/n3"], &[], &["n3"]),
            ("every reading of a dns name that is on it", &[], &["n1.svc.local"], &["n1", "n1.svc"]),
            ("dns not on it", &[], &["n10.svc"], &[]),
        ] {
            let only = names(uris, dns).only(&allowed);
            let left: Vec<_> = ["n1", "n1.svc", "n1.svc.local", "n2", "n3", "n10"]
                .into_iter()
                .filter(|node| only.allow("smg", node))
                .collect();
            assert_eq!(left, expected, "{case}");
            assert_eq!(only.is_empty(), expected.is_empty(), "{case}");
            assert!(!only.allow("prod", "n1"), "{case}");
        }
    }

    #[test]
    fn names_cover_those_that_they_may_speak_for() {
        let all = names(&["spiffe://smg/mesh/n1", "spiffe://smg/mesh/n2"], &[]);
        let one = names(&["spiffe://smg/mesh/n1"], &[]);
        let open = names(&[], &["n1.svc"]);
        assert!(all.covers(&one) && !one.covers(&all));
        assert!(open.covers(&open) && !one.covers(&open) && one.covers(&NodeNames::default()));
    }

    #[test]
    fn listed_names_are_those_that_are_allowed() {
        for (case, uris, dns, expected) in [
            ("ours", &["spiffe://smg/mesh/n1"][..], &["n1"][..], &[(Some("smg"), "n1")][..]),
            ("domain", &[], &["n1.svc"], &[(None, "n1"), (None, "n1.svc")]),
            ("neither", &["https://smg/mesh/n1"], &["*.svc"], &[]),
            ("both", &["spiffe://a/mesh/n1"], &["n2"], &[(Some("a"), "n1"), (Some("a"), "n2")]),
        ] {
            let names = names(uris, dns);
            let listed = names.listed();
            let seen: Vec<_> = listed.iter().map(|name| (name.cluster.as_deref(), &*name.node)).collect();
            assert_eq!(seen, expected, "{case}");
            let allowed = listed.iter().all(|name| names.allow(name.cluster.as_deref().unwrap_or("any"), &name.node));
            assert!(allowed, "{case}");
        }
    }
}
