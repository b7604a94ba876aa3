//! Routing hints: what is taken is within its bounds, reads the same once written again, and fits a frame.

use smg::mesh::{
    node::NodeStatus,
    routing::{DOUBTS_MAX, LOADS_MAX, Message, NAMES_MAX, PLACEMENTS_MAX, Placement, Sight},
    wire::routing,
};

pub(super) fn run(frame: &[u8]) {
    let Ok(message) = routing::decode(frame) else { return };
    match &message {
        Message::Loads(loads) => assert!(loads.len() <= LOADS_MAX),
        Message::Placements(placements) => {
            assert!(placements.len() <= PLACEMENTS_MAX);
            assert!(placements.iter().all(|placement| (1..=NAMES_MAX).contains(&placement.names.len())));
        }
        Message::Sight(sight) => assert!(sight.doubted.len() <= DOUBTS_MAX),
        Message::Ask => {}
    }
    assert_eq!(routing::decode(&routing::encode(&message)).ok(), Some(message));
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let placement = |model: &str, names| Placement {
        model: model.into(),
        worker: 0xdead_beef,
        generation: 255,
        age_ms: 90_000,
        names,
    };
    let placements = vec![placement("m", vec![2, u64::MAX]), placement("n", vec![7; 40]), placement("m", vec![9])];
    let doubted = ["n2", "n3"].iter().filter_map(|name| Some((name.parse().ok()?, NodeStatus::Down)));
    let sight = Message::Sight(Sight { alive: 3, doubted: doubted.collect() });
    [Message::Ask, sight, Message::Loads(vec![(1, 2), (u32::MAX, 3)]), Message::Placements(placements)]
        .map(|message| routing::encode(&message).to_vec())
        .into()
}
