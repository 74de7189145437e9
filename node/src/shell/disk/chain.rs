//! The chain: the batches that the journal holds, examined before the engine sees them, cut where a crash tore them, and
//! made durable.
//!
//! **Examine.** Every batch has to be whole, and its link has to join the one before. Where the first one is not whole,
//! the journal is cut, if what is lost by that was on its way when the process ended: nobody was told of it. If a link
//! anywhere says that the store was synced beyond the cut, it rotted after it was acknowledged; then the store is
//! damaged, and says so, rather than come up with less than it promised. When nothing says so (the very last batches
//! rotted, or the file was cut short), the store comes up with an earlier state; the sequence that it states tells its
//! peers.
//!
//! **Settle.** A process whose sync failed is ended, but the pages that were not written are marked clean by then: its
//! successor reads batches from the page cache that are not on the disk, and no later sync would write them. So what
//! is not known to be synced is written again, in place, and synced, before the engine is opened.
//!
//! **Verify.** When the engine is open, what its tables hold has to join what the journal holds.

use std::{
    collections::VecDeque,
    fs::{self, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{
    error::Damage,
    journal::{Batches, Item, JournalBatch, journal_files},
    link::{LINK_KEY, Link},
};
use crate::storage::Sequence;

/// What the journal holds.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// The link of its first batch.
    pub(super) first: Option<Link>,
    /// The link and the engine's number of its last good batch.
    pub(super) last: Option<(Link, u64)>,
    /// The lowest sequence of a link that is in no good batch.
    pub(super) lost: Option<Sequence>,
    /// The furthest that a link says that the store was synced.
    pub(super) synced: Sequence,
    tail: Option<Tail>,
}

/// The end of the last file that counts.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    /// The bytes that are not known to be synced, and where they begin.
    unsettled: Vec<u8>,
    at: u64,
    /// Bytes after them that are no batches.
    torn_bytes: u64,
}

/// Why a chain could not be examined.
#[derive(Debug)]
pub(super) enum ExamineError {
    Damaged(Damage),
    Io(PathBuf, io::Error),
}

impl Chain {
    /// Examines the journal of an engine in whose database one of the keyspaces, with this id, holds the links.
    ///
    /// # Errors
    ///
    /// [`ExamineError::Damaged`] if something is missing that was synced.
    pub(super) fn examine(engine: &Path, links: u64) -> Result<Chain, ExamineError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| ExamineError::Io(path, error)
        };
        let mut chain = Chain::default();
        let mut is_cut = false;
        for path in journal_files(engine).map_err(failed(engine))? {
            let bytes = fs::read(&path).map_err(failed(&path))?;
            if is_cut {
                // Nothing may follow a cut: the engine began this file after it had synced the one before.
                if Link::find_all(&bytes).next().is_some() {
                    return Err(ExamineError::Damaged(Damage::JournalHole { path, after: chain.sequence() }));
                }
                continue;
            }
            let mut batches = Batches::new(&bytes);
            // Where the batches begin that are not known to be synced.
            let mut unsettled = VecDeque::new();
            for batch in batches.by_ref() {
                let link = chain.append(&batch, links).map_err(|damage| {
                    ExamineError::Damaged(damage(
                        path.clone(),
                        u64::try_from(batch.start).unwrap_or(u64::MAX),
                    ))
                })?;
                unsettled.push_back((link.sequence, batch.start));
                while unsettled.pop_front_if(|(sequence, _)| *sequence <= link.synced).is_some() {}
            }
            let end = batches.position();
            let mut torn_bytes = 0;
            if let Some(rest) = batches.rest() {
                is_cut = true;
                torn_bytes = rest.len();
                for link in Link::find_all(rest) {
                    chain.synced = chain.synced.max(link.synced);
                    let lost = chain.lost.get_or_insert(link.sequence);
                    *lost = link.sequence.min(*lost);
                }
            }
            let at = unsettled.front().map_or(end, |(_, start)| *start);
            chain.tail = Some(Tail {
                path,
                unsettled: bytes[at..end].to_vec(),
                at: u64::try_from(at).expect("a file's length"),
                torn_bytes: u64::try_from(torn_bytes).expect("a file's length"),
            });
        }
        // Without a good batch it is up to the tables to say how far the store had come.
        if chain.last.is_some() && chain.synced > chain.sequence() {
            let (after, synced) = (chain.sequence(), chain.synced);
            return Err(ExamineError::Damaged(Damage::JournalRotten {
                path: engine.to_owned(),
                after,
                synced,
            }));
        }
        Ok(chain)
    }

    /// The sequence of the last good batch; 0 if there is none.
    pub(super) fn sequence(&self) -> Sequence {
        self.last.map_or(Sequence(0), |(link, _)| link.sequence)
    }

    /// Adds a batch that is whole, and returns its link.
    fn append(&mut self, batch: &JournalBatch<'_>, links: u64) -> Result<Link, fn(PathBuf, u64) -> Damage> {
        let link = match batch.items.first() {
            Some(Item { keyspace, key, value: Some(value) }) if *keyspace == links && *key == LINK_KEY => {
                Link::decode(value)
            }
            Some(_) | None => None,
        };
        let link = link.filter(|link| link.allows(batch.number));
        let Some(link) = link else { return Err(|path, at| Damage::BatchOutOfPlace { path, at }) };
        if self.last.is_some_and(|(last, number)| !last.is_followed_by(number, &link)) {
            return Err(|path, at| Damage::BatchOutOfPlace { path, at });
        }
        self.first.get_or_insert(link);
        self.synced = self.synced.max(link.synced);
        self.last = Some((link, batch.number));
        Ok(link)
    }

    /// Bytes at the end that are no batches, and their file.
    pub(super) fn torn(&self) -> Option<(&Path, u64)> {
        let tail = self.tail.as_ref().filter(|tail| tail.torn_bytes > 0)?;
        Some((&tail.path, tail.torn_bytes))
    }

    /// Cuts off what is torn, and writes and syncs again what is not known to be on the disk.
    ///
    /// # Errors
    ///
    /// If it cannot be written, with the file.
    pub(super) fn settle(&mut self) -> Result<(), (PathBuf, io::Error)> {
        let Some(tail) = self.tail.take() else { return Ok(()) };
        if tail.unsettled.is_empty() && tail.torn_bytes == 0 {
            return Ok(());
        }
        tail.settle().map_err(|error| (tail.path, error))
    }
}

impl Tail {
    fn settle(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        if self.torn_bytes > 0 {
            file.set_len(self.at + u64::try_from(self.unsettled.len()).expect("a file's length"))?;
        }
        file.seek(SeekFrom::Start(self.at))?;
        file.write_all(&self.unsettled)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::journal::tests::encode, *};

    const LINKS: u64 = 2;

    /// A directory with journal files, removed with its test.
    struct Journals(PathBuf);

    impl Journals {
        fn new(name: &str, files: &[Vec<u8>]) -> Journals {
            let path = std::env::temp_dir().join(format!("quorate-chain-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            for (number, bytes) in files.iter().enumerate() {
                fs::write(path.join(format!("{number}.jnl")), bytes).unwrap();
            }
            Journals(path)
        }

        fn examine(&self) -> Result<Chain, Damage> {
            Chain::examine(&self.0, LINKS).map_err(|error| match error {
                ExamineError::Damaged(damage) => damage,
                ExamineError::Io(path, error) => panic!("{path:?}: {error}"),
            })
        }
    }

    impl Drop for Journals {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// The batch with a sequence, to which the engine gave ten times as much, when so much was synced.
    fn linked(sequence: u64, synced: u64) -> Vec<u8> {
        let number_min = if sequence == 1 { 0 } else { (sequence - 1) * 10 + 1 };
        let (sequence, previous, synced) = (Sequence(sequence), Sequence(sequence - 1), Sequence(synced));
        let link = Link { sequence, previous, number_min, synced }.encode();
        let items = [
            Item { keyspace: LINKS, key: LINK_KEY, value: Some(&link) },
            Item { keyspace: 1, key: b"key", value: Some(b"value") },
        ];
        encode(sequence.0 * 10, &items)
    }

    fn number(chain: &Chain) -> Option<(u64, u64)> {
        chain.last.map(|(link, number)| (link.sequence.0, number))
    }

    #[test]
    fn batches_join_over_files_and_before_reserved_room() {
        let files = [[linked(1, 0), linked(2, 1)].concat(), linked(3, 2), vec![0; 500]];
        let chain = Journals::new("files", &files).examine().unwrap();
        assert_eq!((number(&chain), chain.first.map(|link| link.sequence.0)), (Some((3, 30)), Some(1)));
        assert!(chain.torn().is_none() && chain.lost.is_none());
        assert!(Journals::new("none", &[vec![]]).examine().unwrap().last.is_none());
    }

    #[test]
    fn a_torn_tail_is_cut_and_what_may_not_be_on_the_disk_is_written_again() {
        let whole = [linked(1, 0), linked(2, 1), linked(3, 1)].concat();
        let torn = linked(4, 1);
        let journals = Journals::new("torn", &[[&whole[..], &torn[..60], &torn[70..]].concat()]);
        let mut chain = journals.examine().unwrap();
        assert_eq!((number(&chain), chain.lost), (Some((3, 30)), None));
        let tail = chain.tail.as_ref().unwrap();
        assert_eq!(
            (tail.at, tail.unsettled.len()),
            (linked(1, 0).len() as u64, whole.len() - linked(1, 0).len())
        );
        assert_eq!(chain.torn().unwrap().1, torn.len() as u64 - 10);
        chain.settle().unwrap();
        assert_eq!(fs::read(journals.0.join("0.jnl")).unwrap(), whole);
    }

    #[test]
    fn what_a_later_link_says_was_synced_has_to_be_there() {
        let mut rotten = linked(2, 1);
        let last = rotten.len() - 20;
        rotten[last] ^= 1;
        let files = |synced| [[linked(1, 0), rotten.clone(), linked(3, synced)].concat()];
        let chain = Journals::new("unsynced", &files(1)).examine().unwrap();
        assert_eq!((number(&chain), chain.lost), (Some((1, 10)), Some(Sequence(2))), "it may have been torn");
        let damage = Journals::new("synced", &files(2)).examine().unwrap_err();
        assert!(matches!(damage, Damage::JournalRotten { after: Sequence(1), synced: Sequence(2), .. }));
        let two = [[linked(1, 0), rotten.clone()].concat(), linked(3, 1)];
        let damage = Journals::new("hole", &two).examine().unwrap_err();
        assert!(matches!(damage, Damage::JournalHole { after: Sequence(1), .. }), "{damage}");
    }

    #[test]
    fn a_batch_that_does_not_follow_is_damage() {
        let out_of_place = |name: &str, bytes: Vec<u8>| {
            let damage = Journals::new(name, &[bytes]).examine().unwrap_err();
            assert!(matches!(damage, Damage::BatchOutOfPlace { .. }), "{name}: {damage}");
        };
        out_of_place("missing", [linked(1, 0), linked(3, 2)].concat());
        out_of_place("twice", [linked(1, 0), linked(1, 0)].concat());
        out_of_place("unlinked", encode(10, &[Item { keyspace: 1, key: b"key", value: Some(b"value") }]));
        // A bit of the engine's own number: below what the link allows, and so that the next does not follow.
        for bit in [0, 1, 40, 63] {
            let mut flipped = linked(2, 1);
            flipped[5 + bit / 8] ^= 1 << (bit % 8);
            out_of_place(&format!("number-{bit}"), [linked(1, 0), flipped, linked(3, 2)].concat());
        }
    }
}
