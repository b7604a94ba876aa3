//! Flags that search the Kubernetes API.

use std::{collections::BTreeMap, time::Duration};

use super::{Check, entries};
use crate::{
    cli::{
        flags::{KubernetesFlags, MeshFlags},
        sources::Origin,
    },
    config::kubernetes::{Kubernetes, PodPort, PodSearch, WorkerPods, label_requirement, namespace, pod_port},
};

/// Flags that mean nothing without `--service-discovery`.
const WORKERS: &[&str] = &["selector", "service-discovery-port", "service-discovery-scheme"];

/// Flags that mean nothing without one search or the other.
const SEARCHES: &[&str] = &["service-discovery-namespace", "service-discovery-interval-secs"];

impl Check<'_> {
    pub(super) fn kubernetes(&mut self, flags: &KubernetesFlags, mesh: &MeshFlags) -> Kubernetes {
        let labels = self.labels("selector", &flags.selector);
        let router_labels = self.labels("router-selector", &flags.router_selector);
        self.kubernetes_contradictions(flags, !router_labels.is_empty(), mesh);
        let text = flags.service_discovery_namespace.as_deref().filter(|text| !text.is_empty());
        let namespace = text.and_then(|text| self.accept("service-discovery-namespace", text, namespace(text)));
        let port = &flags.service_discovery_port;
        let port = self.accept("service-discovery-port", port, pod_port(port)).unwrap_or(PodPort::Number(80));
        let scheme = if flags.service_discovery_scheme == "https" { "https" } else { "http" };
        let workers = WorkerPods { search: PodSearch { namespace: namespace.clone(), labels }, port, scheme };
        let routers = PodSearch { namespace, labels: router_labels };
        Kubernetes {
            workers: flags.service_discovery.then_some(workers),
            routers: (mesh.enable_mesh && !routers.labels.is_empty()).then_some(routers),
            relist: Duration::from_secs(flags.service_discovery_interval_secs),
        }
    }

    /// Like the contradictions between the other flags, only those of the command line count; a search without labels
    /// would take in every pod, from wherever it was asked for.
    fn kubernetes_contradictions(&mut self, flags: &KubernetesFlags, has_routers: bool, mesh: &MeshFlags) {
        let origins = self.origins;
        let is_given = |long: &&str| *origins.of(long) == Origin::Flag;
        if !flags.service_discovery {
            let need = |long| format!("--{long} needs --service-discovery: add it");
            self.problems.extend(WORKERS.iter().filter(|long| is_given(long)).map(need));
        }
        if !flags.service_discovery && !has_routers {
            let need = |long| format!("--{long} needs --service-discovery or --router-selector: add one");
            self.problems.extend(SEARCHES.iter().filter(|long| is_given(long)).map(need));
        }
        if is_given(&"router-selector") && !mesh.enable_mesh {
            self.problems.push("--router-selector needs --enable-mesh: add it".into());
        }
        // A search that finds nothing says nothing of who else there is: a gateway would take itself for the only one.
        if has_routers && mesh.enable_mesh && entries(&mesh.mesh_peer_urls).next().is_none() {
            self.problem(
                "router-selector",
                "needs --mesh-peer-urls, so that a gateway whose API server is ill does not begin a cluster of its own: \
                 name the others or their headless Service",
            );
        }
        if flags.service_discovery && entries(&flags.selector).next().is_none() {
            self.problem("service-discovery", "needs --selector, the labels of the pods that are workers: add it");
        }
    }

    fn labels(&mut self, long: &str, texts: &[String]) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for text in entries(texts) {
            let Some((key, value)) = self.accept(long, text, label_requirement(text)) else { continue };
            if labels.insert(key.clone(), value.clone()).is_some_and(|other| other != value) {
                self.problem(long, &format!("`{key}` has two values, and no pod has both: give one"));
            }
        }
        labels
    }
}
