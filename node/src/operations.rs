//! The operations under way, found by number in constant time.
//!
//! A number names a slot and the time that the slot was taken, which counts up from a random start: an answer to an
//! operation that is over, or to a process that is dead, finds nobody.

/// Bits of a number that name the slot.
const SLOT_BITS: u32 = 24;

/// Operations by number.
pub(crate) struct Operations<T> {
    slots: Vec<Option<(u64, T)>>,
    len: usize,
}

/// The numbers that operations are given.
pub(crate) struct Numbers {
    /// Times that any slot was taken.
    taken: u64,
    /// Slots that were free again, and how many were ever used.
    free: Vec<u32>,
    used: u32,
}

impl Numbers {
    /// Numbers that count from a random start.
    pub(crate) fn new(start: u64) -> Numbers {
        Numbers { taken: start, free: Vec::new(), used: 0 }
    }

    /// A number for a new operation.
    pub(crate) fn take(&mut self) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        assert!(slot < 1 << SLOT_BITS, "operations are bounded far below");
        self.taken = self.taken.wrapping_add(1);
        self.taken << SLOT_BITS | u64::from(slot)
    }

    /// The operation is over, or never began.
    pub(crate) fn give_back(&mut self, number: u64) {
        self.free.push(slot_of(number));
    }
}

impl<T> Operations<T> {
    /// None.
    pub(crate) fn new() -> Operations<T> {
        Operations { slots: Vec::new(), len: 0 }
    }

    /// Puts an operation under its number.
    pub(crate) fn insert(&mut self, number: u64, operation: T) {
        let slot = slot_of(number) as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        debug_assert!(self.slots[slot].is_none(), "a slot is given back before it is taken again");
        self.slots[slot] = Some((number, operation));
        self.len += 1;
    }

    /// Takes an operation out.
    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let slot = self.slots.get_mut(slot_of(number) as usize)?;
        if slot.as_ref().is_none_or(|(named, _)| *named != number) {
            return None;
        }
        self.len -= 1;
        slot.take().map(|(_, operation)| operation)
    }

    /// An operation.
    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (named, operation) = self.slots.get_mut(slot_of(number) as usize)?.as_mut()?;
        (*named == number).then_some(operation)
    }

    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All of them, in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().flatten().map(|(number, operation)| (*number, operation))
    }
}

fn slot_of(number: u64) -> u32 {
    u32::try_from(number & ((1 << SLOT_BITS) - 1)).expect("fewer bits than 32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_that_is_over_is_not_found_although_its_slot_is_taken_again() {
        let (mut numbers, mut operations) = (Numbers::new(u64::MAX - 1), Operations::new());
        let first = numbers.take();
        operations.insert(first, "first");
        assert_eq!(operations.remove(first), Some("first"));
        numbers.give_back(first);
        let second = numbers.take();
        operations.insert(second, "second");
        assert_eq!(slot_of(first), slot_of(second));
        assert_eq!(operations.remove(first), None);
        assert_eq!(operations.get_mut(first), None);
        assert_eq!(operations.get_mut(second), Some(&mut "second"));
        assert_eq!(operations.iter().map(|(number, _)| number).collect::<Vec<_>>(), [second]);
        assert_eq!(operations.len(), 1);
    }
}
