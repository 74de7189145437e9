//! The engine's journal, read without the engine.
//!
//! The engine ends its replay at the first bytes that it cannot make sense of, cuts the file there, and goes on with the
//! next file: after a flipped bit in the middle it would come up with a hole, or with tables that are ahead of its
//! journal. So its journal is read here first (`chain`), and what is not good never reaches it. Salvage reads it here
//! too.
//!
//! # The format
//!
//! Of fjall 3, in a journal without compression; numbers little-endian. A file is a run of batches, and then zeros up to
//! the length that was reserved for it.
//!
//! ```text
//! batch  1 (1), count of items (4), the engine's number (8), items, 3 (1), xxh3 of the items' bytes (8), "FJL" 3 (4)
//! item   2 (1), 0 for a value and 1 for a removal (1), 0: not compressed (1), keyspace (8), key length (2),
//!        value length (4), the same again (4), key, value
//! ```

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Buf;
use xxhash_rust::xxh3::xxh3_64;

/// What ends a batch.
const TRAILER: &[u8] = b"FJL\x03";
/// The first byte of a batch.
const START: u8 = 1;
/// The first byte of an item.
const ITEM: u8 = 2;
/// The first byte of a batch's end.
const END: u8 = 3;

/// A batch, whole.
#[derive(Debug)]
pub(super) struct JournalBatch<'a> {
    /// Where it begins.
    pub(super) start: usize,
    /// The engine's number. Nothing in the batch itself protects it.
    pub(super) number: u64,
    pub(super) items: Vec<Item<'a>>,
}

/// One change of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item<'a> {
    pub(super) keyspace: u64,
    pub(super) key: &'a [u8],
    /// None for a removal.
    pub(super) value: Option<&'a [u8]>,
}

/// Reads the batches of one file, up to the first that is not whole.
#[derive(Debug)]
pub(super) struct Batches<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Batches<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Batches<'a> {
        Batches { bytes, at: 0 }
    }

    /// Where the last batch that was read ends.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Goes on at the next batch that is whole, and says how many bytes it passed over; none if nothing is left but
    /// reserved room. For salvage: whoever replays has to stop.
    pub(super) fn skip_damage(&mut self) -> Option<usize> {
        let rest = self.rest()?;
        let mut starts = rest.iter().enumerate().skip(1).filter(|(_, byte)| **byte == START);
        if let Some((at, _)) = starts.find(|(at, _)| read_batch(rest, *at).is_some()) {
            self.at += at;
            return Some(at);
        }
        let zeros = rest.iter().rev().take_while(|byte| **byte == 0).count();
        self.at = self.bytes.len();
        Some(rest.len() - zeros)
    }

    /// What comes after the last batch that was read, unless that is nothing but reserved room.
    pub(super) fn rest(&self) -> Option<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        // By the word: there may be 64 MiB of them.
        let words = rest.chunks_exact(8);
        let is_zero =
            words.remainder().iter().all(|byte| *byte == 0) && words.into_iter().all(|word| word == [0; 8]);
        (!is_zero).then_some(rest)
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = JournalBatch<'a>;

    fn next(&mut self) -> Option<JournalBatch<'a>> {
        let (batch, end) = read_batch(self.bytes, self.at)?;
        self.at = end;
        Some(batch)
    }
}

/// The batch that begins at `start`, and where it ends.
fn read_batch(bytes: &[u8], start: usize) -> Option<(JournalBatch<'_>, usize)> {
    let mut rest = bytes.get(start..)?;
    if rest.try_get_u8().ok()? != START {
        return None;
    }
    let (count, number) = (rest.try_get_u32_le().ok()?, rest.try_get_u64_le().ok()?);
    let first = rest;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(read_item(&mut rest)?);
    }
    let checksum = xxh3_64(&first[..first.len() - rest.len()]);
    if rest.try_get_u8().ok()? != END || rest.try_get_u64_le().ok()? != checksum {
        return None;
    }
    let rest = rest.strip_prefix(TRAILER)?;
    Some((JournalBatch { start, number, items }, bytes.len() - rest.len()))
}

fn read_item<'a>(rest: &mut &'a [u8]) -> Option<Item<'a>> {
    if rest.try_get_u8().ok()? != ITEM {
        return None;
    }
    let is_removal = match rest.try_get_u8().ok()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    if rest.try_get_u8().ok()? != 0 {
        return None;
    }
    let keyspace = rest.try_get_u64_le().ok()?;
    let key_bytes = usize::from(rest.try_get_u16_le().ok()?);
    let value_bytes = rest.try_get_u32_le().ok()?;
    if rest.try_get_u32_le().ok()? != value_bytes {
        return None;
    }
    let key = rest.split_off(..key_bytes)?;
    let value = rest.split_off(..usize::try_from(value_bytes).ok()?)?;
    Some(Item { keyspace, key, value: (!is_removal).then_some(value) })
}

/// The journal files of an engine, oldest first.
///
/// # Errors
///
/// If the directory cannot be read.
pub(super) fn journal_files(engine: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(numbered_files(engine)?.into_iter().map(|(_, path)| path).collect())
}

fn numbered_files(engine: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(engine)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse().ok());
        files.extend(number.map(|number| (number, path)));
    }
    files.sort();
    Ok(files)
}

/// The file that the engine writes its journal to, to be synced beside it.
///
/// The engine holds its journal's lock while it syncs. A committer that is always busy would hardly ever let go of it,
/// and the worker, which needs it to seal and flush memory, would starve: measured as memory and journal growing without
/// end. And a failed sync is told once to each handle of a file: with one of our own it does not matter whether the
/// worker's sync comes first.
#[derive(Debug)]
pub(super) struct ActiveJournal {
    engine: PathBuf,
    number: u64,
    file: File,
}

impl ActiveJournal {
    /// The newest file of an engine that is open.
    pub(super) fn open(engine: &Path) -> io::Result<ActiveJournal> {
        let newest = numbered_files(engine)?.pop();
        let (number, path) = newest.ok_or(io::ErrorKind::NotFound)?;
        Ok(ActiveJournal { engine: engine.to_owned(), number, file: open_to_write(&path)? })
    }

    /// Whether the file system has become read-only. After an error of its own a file system may be so without being
    /// mounted so (ext4, since Linux 6.12); it does not even take nothing then.
    pub(super) fn is_read_only(&self) -> bool {
        let nothing = (&self.file).write(&[]);
        nothing.is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }

    /// Syncs what the system has been given of the journal.
    ///
    /// Before the engine begins another file it has synced the one before; that is not relied on. Whether there is
    /// another is asked without a descriptor: when the process has no more of them, syncs go on.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        loop {
            self.file.sync_data()?;
            let next = self.engine.join(format!("{}.jnl", self.number + 1));
            if !is_begun(&next)? {
                return Ok(());
            }
            (self.number, self.file) = (self.number + 1, open_to_write(&next)?);
        }
    }
}

fn open_to_write(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// Whether the engine may have written to a file. One without a byte is still being made, or was left behind when that
/// failed: nothing that a sync is asked for is in it.
fn is_begun(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::shell::scratch::Scratch;

    /// A batch as the engine writes it.
    pub(crate) fn encode(number: u64, items: &[Item<'_>]) -> Vec<u8> {
        let mut body = Vec::new();
        for item in items {
            let value = item.value.unwrap_or_default();
            body.extend([ITEM, u8::from(item.value.is_none()), 0]);
            body.extend(item.keyspace.to_le_bytes());
            body.extend(u16::try_from(item.key.len()).unwrap().to_le_bytes());
            let value_bytes = u32::try_from(value.len()).unwrap().to_le_bytes();
            body.extend([value_bytes, value_bytes].concat());
            body.extend([item.key, value].concat());
        }
        let mut out = vec![START];
        out.extend(u32::try_from(items.len()).unwrap().to_le_bytes());
        out.extend(number.to_le_bytes());
        out.extend(&body);
        out.push(END);
        out.extend(xxh3_64(&body).to_le_bytes());
        out.extend(TRAILER);
        out
    }

    fn items() -> [Item<'static>; 2] {
        [
            Item { keyspace: 1, key: b"key", value: Some(b"value") },
            Item { keyspace: 2, key: b"gone", value: None },
        ]
    }

    #[test]
    fn batches_read_back_up_to_the_reserved_room() {
        let bytes = [encode(7, &items()), encode(9, &items()[..1]), vec![0; 1001]].concat();
        let mut batches = Batches::new(&bytes);
        let first = batches.next().unwrap();
        assert_eq!((first.start, first.number, first.items), (0, 7, items().into()));
        let second = batches.next().unwrap();
        assert_eq!((second.start, second.number, second.items.len()), (encode(7, &items()).len(), 9, 1));
        assert!(batches.next().is_none() && batches.rest().is_none());
        assert_eq!(batches.position(), bytes.len() - 1001);
    }

    #[test]
    fn no_cut_and_no_flipped_bit_yields_another_batch() {
        let whole = encode(7, &items());
        for length in 0..whole.len() {
            assert!(Batches::new(&whole[..length]).next().is_none(), "cut at {length}");
        }
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = Batches::new(&damaged).next();
            // The number is the one thing that the batch does not protect: links do.
            let is_number = (5..13).contains(&(bit / 8));
            assert_eq!(read.is_some(), is_number, "bit {bit}");
        }
    }

    #[test]
    fn anything_but_zeros_after_the_last_batch_is_noticed() {
        let batch = encode(7, &items());
        for (room, at) in [(1, 0), (8, 7), (64, 3), (65, 64)] {
            let mut bytes = [&batch[..], &vec![0; room]].concat();
            bytes[batch.len() + at] = 1;
            let mut batches = Batches::new(&bytes);
            assert_eq!(batches.by_ref().count(), 1);
            assert_eq!(batches.rest().map(<[u8]>::len), Some(room));
        }
    }

    #[test]
    fn lengths_that_damage_made_up_are_not_believed() {
        let mut bytes = encode(7, &items());
        bytes[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Batches::new(&bytes).next().is_none());
    }

    #[test]
    fn damage_between_two_batches_is_passed_over() {
        let whole = encode(7, &items());
        for cut in 1..whole.len() {
            let bytes = [&whole[..], &whole[..cut], &whole, &[0; 9]].concat();
            let mut batches = Batches::new(&bytes);
            assert_eq!((batches.by_ref().count(), batches.skip_damage()), (1, Some(cut)));
            assert_eq!((batches.by_ref().count(), batches.skip_damage()), (1, None));
            let mut batches = Batches::new(&bytes[..whole.len() + cut]);
            assert_eq!((batches.by_ref().count(), batches.skip_damage().is_some()), (1, true));
            assert_eq!((batches.by_ref().count(), batches.skip_damage()), (0, None));
        }
    }

    #[test]
    fn the_file_that_is_synced_is_the_last_that_was_begun() {
        let scratch = Scratch::new();
        let make = |number: u32, bytes: &[u8]| {
            fs::write(scratch.path().join(format!("{number}.jnl")), bytes).unwrap();
        };
        make(7, &[0; 9]);
        let mut journal = ActiveJournal::open(scratch.path()).unwrap();
        make(8, &[]);
        journal.sync().unwrap();
        assert_eq!(journal.number, 7, "a file without a byte is not begun");
        make(8, &[0; 9]);
        make(9, &[0; 9]);
        journal.sync().unwrap();
        assert_eq!(journal.number, 9);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..200),
        ) {
            let mut batches = Batches::new(&bytes);
            while batches.by_ref().count() > 0 || batches.skip_damage().is_some() {}
            prop_assert!(batches.rest().is_none());
        }
    }
}
