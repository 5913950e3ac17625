//! Who waits for changes of a content, and where it has changed since they looked.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::{Rc, Weak};

use pangea_ipc::content::ChunkIndex;
use tokio::sync::Notify;

/// Everybody who watches one content.
#[derive(Debug, Default)]
pub struct Watches(RefCell<Vec<Weak<Changes>>>);

/// Where something has changed that a watch has not yet taken.
#[derive(Debug)]
struct Changes {
    /// From the first chunk to the last.
    range: RefCell<Range<ChunkIndex>>,
    changed: Notify,
}

/// Tells that a content has changed, and where: the sets of a content of a TiB are 512 KiB, too much to go through for each
/// chunk that comes.
#[derive(Debug)]
pub struct Watch(Rc<Changes>);

impl Watches {
    /// A watch that has yet to look at `chunks`.
    pub fn watch(&self, chunks: Range<ChunkIndex>) -> Watch {
        let changes = Rc::new(Changes { range: RefCell::new(chunks), changed: Notify::new() });
        let mut watches = self.0.borrow_mut();
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Rc::downgrade(&changes));
        Watch(changes)
    }

    /// Whether there is any watch.
    pub fn any(&self) -> bool {
        self.0.borrow().iter().any(|watch| watch.strong_count() > 0)
    }

    /// Tells every watch that `chunks` have changed.
    pub fn tell(&self, chunks: &Range<ChunkIndex>) {
        for watch in self.0.borrow().iter().filter_map(Weak::upgrade) {
            let mut range = watch.range.borrow_mut();
            *range = if range.is_empty() {
                chunks.clone()
            } else {
                range.start.min(chunks.start)..range.end.max(chunks.end)
            };
            watch.changed.notify_one();
        }
    }
}

impl Watch {
    /// Returns when something has changed that was not taken; may return once when nothing has.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// The chunks from the first to the last that may have changed since this was called last; at first those that the
    /// watch was made with.
    #[must_use]
    pub fn take(&self) -> Range<ChunkIndex> {
        self.0.range.replace(0..0)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_watch_learns_from_the_first_to_the_last_that_changed_since_it_looked() {
        let watches = Watches::default();
        assert!(!watches.any());
        let (early, late) = (watches.watch(0..90), watches.watch(0..90));
        assert!(watches.any());
        assert!(early.changed().now_or_never().is_none());
        assert_eq!(early.take(), 0..90, "at first everything is new");
        assert_eq!(early.take(), 0..0);
        watches.tell(&(40..41));
        watches.tell(&(7..9));
        early.changed().now_or_never().expect("told before it waited");
        assert_eq!(early.take(), 7..41);
        watches.tell(&(3..4));
        assert_eq!(early.take(), 3..4);
        assert_eq!(late.take(), 0..90, "each has its own");
        drop(early);
        assert!(watches.any());
        drop(late);
        assert!(!watches.any());
        watches.tell(&(0..90));
    }
}
