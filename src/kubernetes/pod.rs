//! What is read of a pod. Everything else that the API says of it is skipped unread.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use crate::config::kubernetes::PodPort;

/// Where Kubernetes writes the zone of a node; from 1.35 on also that of a pod.
pub(super) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A pod, as far as it concerns a gateway.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pod {
    /// Namespace and name, `ns/name`: one pod at a time has it.
    pub name: String,
    /// What no other pod ever has.
    pub uid: String,
    /// Its address; none before it has one.
    pub ip: Option<IpAddr>,
    /// The node that it runs on; empty before there is one.
    pub node: String,
    /// Its zone; empty when unknown.
    pub zone: String,
    /// Named container ports.
    pub ports: BTreeMap<String, u16>,
    /// Its condition `Ready`.
    pub is_ready: bool,
    /// It is being deleted, or has run to its end: no new requests.
    pub is_ending: bool,
}

impl Pod {
    /// The port number that is meant; none when the pod has no port of that name.
    #[must_use]
    pub fn port(&self, port: &PodPort) -> Option<u16> {
        match port {
            PodPort::Number(port) => Some(*port),
            PodPort::Name(name) => self.ports.get(name).copied(),
        }
    }
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) metadata: PageMeta,
    #[serde(deserialize_with = "or_default")]
    pub(super) items: Vec<RawPod>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMeta {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default)]
    pub(super) r#continue: String,
}

/// An object of a watch, or a bookmark, or an error: what they have in common is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawPod {
    pub(super) metadata: RawMeta,
    #[serde(deserialize_with = "or_default")]
    spec: RawSpec,
    #[serde(deserialize_with = "or_default")]
    status: RawStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawMeta {
    name: String,
    namespace: String,
    uid: String,
    pub(super) resource_version: String,
    deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawSpec {
    node_name: String,
    #[serde(deserialize_with = "or_default")]
    containers: Vec<RawContainer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawContainer {
    #[serde(deserialize_with = "or_default")]
    ports: Vec<RawPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPort {
    name: String,
    container_port: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<RawCondition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawCondition {
    r#type: String,
    status: String,
}

/// `null` stands for nothing, as Go writes an empty slice.
fn or_default<'de, T: Default + Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl RawPod {
    /// The pod, or none for an object without name and UID, which is no pod.
    pub(super) fn into_pod(self) -> Option<Pod> {
        let Self { metadata, spec, status } = self;
        if metadata.name.is_empty() || metadata.uid.is_empty() {
            return None;
        }
        let ports = spec.containers.into_iter().flat_map(|container| container.ports);
        Some(Pod {
            name: format!("{}/{}", metadata.namespace, metadata.name),
            uid: metadata.uid,
            ip: status.pod_ip.parse().ok(),
            node: spec.node_name,
            zone: metadata.labels.get(ZONE_LABEL).cloned().unwrap_or_default(),
            ports: ports.filter(|port| !port.name.is_empty()).map(|port| (port.name, port.container_port)).collect(),
            is_ready: status
                .conditions
                .iter()
                .any(|condition| condition.r#type == "Ready" && condition.status == "True"),
            is_ending: metadata.deletion_timestamp.is_some() || matches!(&*status.phase, "Succeeded" | "Failed"),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Option<Pod> {
        serde_json::from_value::<RawPod>(value).unwrap().into_pod()
    }

    #[test]
    fn a_pod_is_read_as_kubernetes_writes_it() {
        let pod = read(json!({
            "metadata": {"name": "w-0", "namespace": "ns", "uid": "u", "resourceVersion": "5",
                "labels": {"app": "w", ZONE_LABEL: "z"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8000}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1",
                "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        let expected = Pod {
            name: "ns/w-0".into(),
            uid: "u".into(),
            ip: Some("10.0.0.1".parse().unwrap()),
            node: "n".into(),
            zone: "z".into(),
            ports: [("http".to_owned(), 8000)].into(),
            is_ready: true,
            is_ending: false,
        };
        assert_eq!(pod, expected);
        assert_eq!(pod.port(&PodPort::Number(1)), Some(1));
        assert_eq!(pod.port(&PodPort::Name("http".into())), Some(8000));
        assert_eq!(pod.port(&PodPort::Name("grpc".into())), None);
    }

    #[test]
    fn what_is_missing_or_null_is_nothing() {
        let meta = json!({"name": "w", "namespace": "ns", "uid": "u", "labels": null});
        let pod =
            read(json!({"metadata": meta, "spec": {"containers": null}, "status": {"conditions": null}})).unwrap();
        assert_eq!((pod.ip, pod.is_ready, pod.is_ending, pod.zone.as_str()), (None, false, false, ""));
        assert_eq!(read(json!({"metadata": {"name": "w"}})), None);
        for (case, status, deleted, expected) in [
            ("runs", "Running", json!(null), false),
            ("ended", "Succeeded", json!(null), true),
            ("failed", "Failed", json!(null), true),
            ("is deleted", "Running", json!("2026-01-01T00:00:00Z"), true),
        ] {
            let meta = json!({"name": "w", "uid": "u", "deletionTimestamp": deleted});
            assert_eq!(
                read(json!({"metadata": meta, "status": {"phase": status}})).unwrap().is_ending,
                expected,
                "{case}"
            );
        }
    }
}
