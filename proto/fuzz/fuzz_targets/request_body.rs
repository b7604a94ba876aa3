//! Request bodies of clients: whatever they hold, the scan ends, and the model it names is no longer than the body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smg::gateway::scan;

fuzz_target!(|body: &[u8]| {
    if let Ok(found) = scan::scan(body) {
        assert!(found.model.is_none_or(|model| model.len() <= body.len()), "a name is not longer than its body");
    }
});
