//! What goes over an emulated path between whole nodes: what was sent once is not asked for again.

use pangea_tests::bench::nodes::Two;
use pangea_tests::bench::path::Path;
use pangea_tests::netlab::skipped;

/// A small window lets the symbols of a chunk out over several round trips. The server says on a stream when it has sent all
/// of them; said too early, all that still wait would be taken for lost.
#[test]
fn symbols_that_wait_for_a_small_window_are_not_asked_for_again() {
    if skipped() {
        return;
    }
    let lab = Path::new(100.0, 50).lab(1).unwrap();
    let two = Two::start(lab.pair());
    two.set_policy("congestion=cubic");
    two.set_policy("fec.mode=always");
    let content = two.put(256 << 10, 1);
    let flow = two.get(content, None);
    assert!(flow.whole, "{:?}", flow.failure);
    let tally = two.tally();
    assert!(tally.sent >= 180, "{} symbols: the chunk went another way", tally.sent);
    assert_eq!(tally.again, 0, "of {} symbols", tally.sent);
}
