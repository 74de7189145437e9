//! The engine's table files, read without the engine.
//!
//! The engine gives up on a whole table, and on the whole database, for one bad block in the wrong place. Here every
//! block that is good is read, whatever became of its neighbours: for salvage, and to see how far the tables had come
//! before the engine is opened.
//!
//! # The format
//!
//! Of lsm-tree 3, blocks without compression. A file is a run of blocks, those with data first.
//!
//! ```text
//! block    "LSM" 3 (4), kind (1; 0 for data), xxh3 (128 bits) of what follows the header (16), its length (4),
//!          length before compression (4), low half of the low half of the xxh3 (128 bits) of the header so far (4)
//! data     items, 255 (1), indices, trailer (31): items between two restarts (1), ..., count of items (4)
//! restart  kind (1; 0 value, 1 and 2 removal), number, key length, key, and of a value its length and the value
//! other    kind (1), number, bytes shared with the last restart's key, length of the rest, rest, and as above
//! ```
//!
//! Lengths and the engine's numbers inside items are LEB128; everything else is little-endian. The items of one key
//! stand newest first.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use bytes::{Buf, Bytes};
use xxhash_rust::xxh3::xxh3_128;

/// What begins a block.
const MAGIC: &[u8; 4] = b"LSM\x03";
/// Bytes before a block's data.
const HEADER_BYTES: usize = 33;
/// Bytes of a data block's trailer.
const TRAILER_BYTES: usize = 31;
/// Bytes read at a time while looking for the next block.
const SEARCH_BYTES: usize = 64 * 1024;

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Bytes,
    /// The engine's number of the batch that wrote it.
    pub(super) number: u64,
    /// None for a removal.
    pub(super) value: Option<Bytes>,
}

/// Reads a table's entries in order, over what is damaged.
#[derive(Debug)]
pub(super) struct TableReader {
    file: File,
    at: u64,
    length: u64,
    entries: VecDeque<Entry>,
    lost: Lost,
}

/// What could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

/// A block's header.
#[derive(Clone, Copy, Debug)]
struct Header {
    is_data: bool,
    checksum: u128,
    data_bytes: u32,
}

impl TableReader {
    pub(super) fn open(path: &Path) -> io::Result<TableReader> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(TableReader { file, at: 0, length, entries: VecDeque::new(), lost: Lost::default() })
    }

    /// What could not be read so far.
    pub(super) fn lost(&self) -> Lost {
        self.lost
    }

    /// Reads on to the next data block that is good. Whether there is one.
    fn fill(&mut self) -> bool {
        loop {
            let Some(header) = self.header_at(self.at) else {
                let next = self.find_header();
                // A table that was never finished ends somewhere; that is no loss, it was never used.
                self.lost.blocks += 1;
                self.lost.bytes += next.unwrap_or(self.length) - self.at;
                match next {
                    Some(next) => self.at = next,
                    None => return false,
                }
                continue;
            };
            if !header.is_data {
                return false;
            }
            let (start, data_bytes) = (self.at + HEADER_BYTES as u64, u64::from(header.data_bytes));
            if start + data_bytes > self.length {
                self.lost.blocks += 1;
                self.lost.bytes += self.length - self.at;
                return false;
            }
            self.at = start + data_bytes;
            let data = self.read(start, header.data_bytes as usize).ok();
            let data = data.filter(|data| xxh3_128(data) == header.checksum);
            match data.and_then(|data| decode_items(&Bytes::from(data))) {
                Some(entries) => {
                    self.entries = entries;
                    return true;
                }
                None => {
                    self.lost.blocks += 1;
                    self.lost.bytes += HEADER_BYTES as u64 + data_bytes;
                }
            }
        }
    }

    /// The header at an offset, if there is a good one.
    fn header_at(&mut self, at: u64) -> Option<Header> {
        let bytes = self.read(at, HEADER_BYTES).ok()?;
        decode_header(&bytes)
    }

    /// Where the next good header begins after the present offset.
    fn find_header(&mut self) -> Option<u64> {
        let mut at = self.at + 1;
        while at + HEADER_BYTES as u64 <= self.length {
            let length = SEARCH_BYTES.min(usize::try_from(self.length - at).unwrap_or(SEARCH_BYTES));
            // What cannot be read is passed over.
            let bytes = self.read(at, length).unwrap_or_default();
            let found = bytes.windows(HEADER_BYTES).position(|window| decode_header(window).is_some());
            if let Some(found) = found {
                return Some(at + found as u64);
            }
            // The last few may begin a header that the next piece ends.
            at += (length - HEADER_BYTES + 1) as u64;
        }
        None
    }

    fn read(&mut self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(at))?;
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Iterator for TableReader {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        while self.entries.is_empty() {
            if !self.fill() {
                return None;
            }
        }
        self.entries.pop_front()
    }
}

fn decode_header(bytes: &[u8]) -> Option<Header> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let kind = rest.try_get_u8().ok()?;
    let checksum = rest.try_get_u128_le().ok()?;
    let (data_bytes, _) = (rest.try_get_u32_le().ok()?, rest.try_get_u32_le().ok()?);
    let header_checksum = rest.try_get_u32_le().ok()?;
    let is_good = u128::from(header_checksum) == xxh3_128(&bytes[..HEADER_BYTES - 4]) & 0xffff_ffff;
    is_good.then_some(Header { is_data: kind == 0, checksum, data_bytes })
}

/// The items of a data block; none if they make no sense.
fn decode_items(data: &Bytes) -> Option<VecDeque<Entry>> {
    let trailer = data.len().checked_sub(TRAILER_BYTES)?;
    let interval = usize::from(data[trailer]);
    let count = usize::try_from((&data[data.len() - 4..]).get_u32_le()).ok()?;
    let mut rest = data.slice(..trailer);
    let mut entries = VecDeque::new();
    let mut restart_key = Bytes::new();
    for index in 0..count {
        let is_removal = match rest.try_get_u8().ok()? {
            0 => false,
            1 | 2 => true,
            _ => return None,
        };
        let number = leb128(&mut rest)?;
        let key = if index.checked_rem(interval)? == 0 {
            restart_key = piece(&mut rest)?;
            restart_key.clone()
        } else {
            let shared = usize::try_from(leb128(&mut rest)?).ok()?;
            let end = piece(&mut rest)?;
            Bytes::from([restart_key.get(..shared)?, &end].concat())
        };
        let value = if is_removal { None } else { Some(piece(&mut rest)?) };
        entries.push_back(Entry { key, number, value });
    }
    Some(entries)
}

/// Bytes behind their length.
fn piece(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(leb128(rest)?).ok()?;
    (length <= rest.len()).then(|| rest.split_to(length))
}

fn leb128(rest: &mut Bytes) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = rest.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A data block of these entries, two between restarts, as the engine writes it.
    fn block(entries: &[Entry]) -> Vec<u8> {
        let mut data = Vec::new();
        let mut restart_key = &b""[..];
        for (index, entry) in entries.iter().enumerate() {
            data.push(u8::from(entry.value.is_none()));
            put_leb128(&mut data, entry.number);
            let shared = if index % 2 == 0 {
                restart_key = &entry.key;
                0
            } else {
                let shared = entry.key.iter().zip(restart_key).take_while(|(a, b)| a == b).count();
                put_leb128(&mut data, shared as u64);
                shared
            };
            put_leb128(&mut data, (entry.key.len() - shared) as u64);
            data.extend(&entry.key[shared..]);
            if let Some(value) = &entry.value {
                put_leb128(&mut data, value.len() as u64);
                data.extend(value);
            }
        }
        data.extend([255, 0, 0, 2]);
        data.extend([0; TRAILER_BYTES - 5]);
        data.extend(u32::try_from(entries.len()).unwrap().to_le_bytes());
        framed(0, &data)
    }

    fn framed(kind: u8, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        let mut out = [&MAGIC[..], &[kind], &xxh3_128(data).to_le_bytes(), &length, &length].concat();
        let checksum = xxh3_128(&out).to_le_bytes();
        out.extend(&checksum[..4]);
        out.extend(data);
        out
    }

    fn put_leb128(out: &mut Vec<u8>, mut number: u64) {
        while number >= 0x80 {
            out.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
            number >>= 7;
        }
        out.push(u8::try_from(number).unwrap());
    }

    fn entry(key: &str, number: u64, value: Option<&str>) -> Entry {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        Entry { key: bytes(key), number, value: value.map(bytes) }
    }

    fn read(bytes: &[u8], name: &str) -> (Vec<Entry>, Lost) {
        let path = std::env::temp_dir().join(format!("quorate-table-{name}-{}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let mut reader = TableReader::open(&path).unwrap();
        let entries = reader.by_ref().collect();
        std::fs::remove_file(&path).unwrap();
        (entries, reader.lost())
    }

    #[test]
    fn every_good_block_is_read_whatever_bit_flips() {
        let first = [entry("a", 900, Some("1")), entry("ab", 3, None), entry("abc", 4, Some("three"))];
        let second = [entry("b", 70_000, Some(""))];
        let blocks = [block(&first), block(&second), framed(1, b"an index")];
        let table = blocks.concat();
        let (entries, lost) = read(&table, "whole");
        assert_eq!((entries, lost), ([&first[..], &second[..]].concat(), Lost::default()));
        for bit in 0..(blocks[0].len() + blocks[1].len()) * 8 {
            let mut damaged = table.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (entries, lost) = read(&damaged, "flipped");
            let left = if bit / 8 < blocks[0].len() { &second[..] } else { &first[..] };
            assert_eq!((&entries[..], lost.blocks), (left, 1), "bit {bit}");
        }
        let (entries, _) = read(&table[..blocks[0].len() + 40], "cut");
        assert_eq!(entries, first);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_items(&Bytes::from(bytes.clone()));
            let _ = decode_header(&bytes);
            // Behind a good header too.
            let _ = read(&[framed(0, &bytes), bytes].concat(), "any");
        }
    }
}
