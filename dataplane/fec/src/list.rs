//! A list of bounded length on the stack: which symbols take part in a pass.
//!
//! Filling arrays for the longest block took longer than multiplying a short one, and a `Vec` of slices cannot be kept
//! from call to call.

use std::mem::MaybeUninit;

/// At most `MAX` items. They are forgotten, not dropped.
pub(crate) struct List<T, const MAX: usize> {
    /// The first `len` are written.
    items: [MaybeUninit<T>; MAX],
    len: usize,
}

impl<T, const MAX: usize> List<T, MAX> {
    pub(crate) fn new() -> Self {
        const { assert!(!std::mem::needs_drop::<T>()) };
        Self { items: [const { MaybeUninit::uninit() }; MAX], len: 0 }
    }

    /// Adds an item. A list that overflows is a bug: callers add symbols of one block.
    pub(crate) fn push(&mut self, item: T) {
        let slot = self.items.get_mut(self.len);
        assert!(slot.is_some(), "a block has no more than {MAX} symbols");
        if let Some(slot) = slot {
            slot.write(item);
            self.len += 1;
        }
    }

    pub(crate) fn all(&self) -> &[T] {
        debug_assert!(self.len <= MAX);
        let items = self.items.get(..self.len).unwrap_or_default();
        // SAFETY: `push` has written the first `len`, and alone changes `len`; `MaybeUninit<T>` has the layout of `T`.
        unsafe { &*(std::ptr::from_ref(items) as *const [T]) }
    }

    pub(crate) fn all_mut(&mut self) -> &mut [T] {
        debug_assert!(self.len <= MAX);
        let items = self.items.get_mut(..self.len).unwrap_or_default();
        // SAFETY: `push` has written the first `len`, and alone changes `len`; `MaybeUninit<T>` has the layout of `T`.
        unsafe { &mut *(std::ptr::from_mut(items) as *mut [T]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_there_in_order() {
        let mut list = List::<u32, 3>::new();
        assert!(list.all().is_empty());
        (1..=3).for_each(|item| list.push(item));
        list.all_mut()[1] = 7;
        assert_eq!(list.all(), [1, 7, 3]);
    }

    #[test]
    #[should_panic(expected = "no more than 1 symbols")]
    fn too_many_are_a_bug() {
        let mut list = List::<u32, 1>::new();
        list.push(1);
        list.push(2);
    }
}
