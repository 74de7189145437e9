//! What the two sides say to each other, and how it is encoded.
//!
//! ```text
//! request    1 check      salt (8), digest (16), levels, unbuilt
//!            2 cells      salt (8), from (number), count (number)
//!            3 sums       salt (8), coarser by (1), from (number), trees (number)
//!            4 key cells  salt (8), group (number), intervals, from (number), count (number)
//!            5 ask        keyspace (4), shift (1), list of: gap << 1 | has counter (number), counter (number)
//!            6 fetch      salt (8), bucket (number), buckets (number), begin (8)
//!            7 push       keyspace (4), objects
//!            8 narrow     salt (8), intervals of trees
//!
//! response   1 equal      nothing
//!            2 differs    levels, unbuilt, survey (bytes), cells
//!            3 cells      cells
//!            4 sums       list of: 0 unknown, or keys + 1 (number), list of: weights (7), moments (7)
//!            5 key cells  keys (number), survey (bytes), cells
//!            6 asked      list of runs: 0 nothing, 1 wanted, n + 1 for n objects (number), length (number); objects
//!            7 fetched    rest (option of 8), objects
//!            8 pushed     objects, list of number: of those for which there was no room
//!            9 forgotten  nothing
//!           10 narrowed   unbuilt, survey (bytes), cells
//!
//! levels     list of: kind, level (1); list of: kind, partition (2), bits (1)
//! kind       keyspace (4), copies (1)
//! unbuilt    list of partition (2)
//! intervals  list of: gap to the first bucket (number), buckets (number)
//! cells      list of 21 bytes
//! objects    list of: key's length << 2 | has watermark << 1 | is nothing (number), watermark (8), key, record
//! list       number, elements
//! bytes      number, bytes
//! number     LEB128 of at most 64 bits
//! ```
//!
//! A *gap* is the difference to the one before, or to zero. Numbers are big-endian where they have a width. An object has a
//! watermark only if that is another than the one before in its list, or than zero: there are few of them, and many objects.
//! Of one that is nothing no record follows.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ring::{KeyspaceId, PartitionId, Token};
use thiserror::Error;

use super::{Object, TreeId, TreeKind};
use crate::{
    hash_tree::{BITS_MAX, Sum},
    residue::Residue,
    sketch::{CELL_BYTES, Cell, Survey},
    version::{CopyCount, Counter, Record},
};

/// Asks in one message at most.
pub(super) const ASKS_MAX: usize = 32;
/// Bits that asks leave out at most: the positions that are left are those of a few keys, of however few there are.
pub(super) const SHIFT_MAX: u8 = 44;
/// The largest position, and what is above it and shares its key.
const POSITION_MAX: u64 = (1 << 56) - 1;

/// What the leader asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Whether all is equal.
    Check {
        /// New for each exchange: it names the exchange, and decides which sources a cell is the sum of.
        salt: u64,
        /// Of the roots of all trees of the leader.
        digest: [u8; 16],
        /// Which trees the leader has, and how fine they are.
        levels: Levels,
        /// Partitions whose trees the leader does not have yet.
        unbuilt: Vec<PartitionId>,
    },
    /// To go on with these trees alone.
    Narrow {
        /// From the check.
        salt: u64,
        /// Their numbers, in ascending order.
        trees: Vec<Interval>,
    },
    /// The next cells of the sketch: of trees, and of buckets after they were narrowed.
    Cells {
        /// From the check.
        salt: u64,
        /// How many came already.
        from: u64,
        /// How many more.
        count: u64,
    },
    /// The sums of all buckets of some trees. From now on the buckets are those of the coarser level.
    Sums {
        /// From the check.
        salt: u64,
        /// By how many bits the buckets are larger than agreed.
        coarser_by: u8,
        /// The first tree.
        from: u64,
        /// How many.
        trees: u64,
    },
    /// Cells of a sketch of the keys in some buckets.
    KeyCells {
        /// From the check.
        salt: u64,
        /// Names these buckets.
        group: u64,
        /// Which they are, in ascending order.
        intervals: Vec<Interval>,
        /// How many cells came already.
        from: u64,
        /// How many more.
        count: u64,
    },
    /// What is at some positions, of which as many bits are sent as will tell their keys from others.
    Ask {
        /// In which keyspace.
        keyspace: KeyspaceId,
        /// How many bits are left out.
        shift: u8,
        /// In ascending order.
        asks: Vec<Ask>,
    },
    /// All objects of some buckets of one tree.
    Fetch {
        /// From the check.
        salt: u64,
        /// Which buckets.
        interval: Interval,
        /// Where in them to begin.
        begin: Token,
    },
    /// Records to be joined, and keys of which the leader holds nothing.
    Push {
        /// In which keyspace.
        keyspace: KeyspaceId,
        /// Each as it was read.
        objects: Vec<Object>,
    },
}

/// What the follower answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// Everything in common is the same.
    Equal,
    /// It is not.
    Differs {
        /// The kinds of trees of both sides, and the finest level that both can have.
        levels: Levels,
        /// Partitions whose trees one of them does not have yet.
        unbuilt: Vec<PartitionId>,
        /// How many of the trees differ.
        survey: Survey,
        /// The first cells of the sketch of the trees.
        cells: Vec<Cell>,
    },
    /// Of the trees that are left.
    Narrowed {
        /// Partitions whose trees the follower has lost meanwhile.
        unbuilt: Vec<PartitionId>,
        /// How many of their buckets differ.
        survey: Survey,
        /// The first cells of the sketch of the buckets.
        cells: Vec<Cell>,
    },
    /// More cells of the sketch.
    Cells(Vec<Cell>),
    /// Of each tree: how many keys it has, and the sums of its buckets. None if the tree is not known.
    Sums(Vec<Option<(u64, Vec<Sum>)>>),
    /// Cells of a sketch of keys.
    KeyCells {
        /// How many keys there are.
        keys: u64,
        /// How many of them differ: with the first cells.
        survey: Survey,
        /// The cells.
        cells: Vec<Cell>,
    },
    /// What became of the first of the asks; the rest is to be asked again.
    Asked {
        /// Of each.
        outcomes: Vec<Outcome>,
        /// One after the other.
        objects: Vec<Object>,
    },
    /// Objects of the buckets.
    Fetched {
        /// Where to go on, if there are more.
        rest: Option<Token>,
        /// In the order of their tokens.
        objects: Vec<Object>,
    },
    /// The records are joined, or refused.
    Pushed {
        /// What is held of those keys of which that is not what was sent, in the order in which they were sent.
        objects: Vec<Object>,
        /// The places of others of these, for which the answer had no room.
        others: Vec<u64>,
    },
    /// The follower knows nothing of such an exchange, or of such cells: it has to begin anew.
    Forgotten,
}

/// How fine trees are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Levels {
    /// How many buckets the trees of each kind have, as a power of two.
    pub(super) kinds: Vec<(TreeKind, u8)>,
    /// Those that have fewer.
    pub(super) coarse: Vec<(TreeId, u8)>,
}

/// Buckets, or trees, in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Interval {
    /// The first.
    pub(super) first: u64,
    /// How many.
    pub(super) count: u64,
}

/// A position that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    /// The position without its last bits.
    pub(super) prefix: u64,
    /// The highest counter that the leader has seen there, if it has something.
    pub(super) counter: Option<Counter>,
}

/// What became of an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// So many objects follow; none if there is nothing.
    Objects(u64),
    /// The leader's are newer, by the look of it.
    Wanted,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a message of an exchange that makes no sense")]
pub struct Undecodable;

type Result<T> = std::result::Result<T, Undecodable>;

/// Something that is encoded.
trait Part: Sized {
    /// The fewest bytes that it takes: lists of more elements than there are bytes for are refused before they are made.
    const BYTES_MIN: usize;

    fn put(&self, out: &mut BytesMut);

    fn take(input: &mut Bytes) -> Result<Self>;
}

impl Request {
    /// Its encoding.
    #[must_use]
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Request::Check { salt, digest, levels, unbuilt } => {
                out.put_u8(1);
                salt.put(&mut out);
                out.put_slice(digest);
                levels.put(&mut out);
                unbuilt.put(&mut out);
            }
            Request::Cells { salt, from, count } => {
                out.put_u8(2);
                salt.put(&mut out);
                put_numbers([*from, *count], &mut out);
            }
            Request::Sums { salt, coarser_by, from, trees } => {
                out.put_u8(3);
                salt.put(&mut out);
                out.put_u8(*coarser_by);
                put_numbers([*from, *trees], &mut out);
            }
            Request::KeyCells { salt, group, intervals, from, count } => {
                out.put_u8(4);
                salt.put(&mut out);
                put_number(*group, &mut out);
                put_intervals(intervals, &mut out);
                put_numbers([*from, *count], &mut out);
            }
            Request::Ask { keyspace, shift, asks } => {
                out.put_u8(5);
                keyspace.put(&mut out);
                out.put_u8(*shift);
                put_number(asks.len() as u64, &mut out);
                let mut before = 0;
                for ask in asks {
                    put_number((ask.prefix - before) << 1 | u64::from(ask.counter.is_some()), &mut out);
                    ask.counter.iter().for_each(|counter| put_number(counter.0, &mut out));
                    before = ask.prefix;
                }
            }
            Request::Fetch { salt, interval, begin } => {
                out.put_u8(6);
                salt.put(&mut out);
                put_numbers([interval.first, interval.count], &mut out);
                begin.0.put(&mut out);
            }
            Request::Push { keyspace, objects } => {
                out.put_u8(7);
                keyspace.put(&mut out);
                put_objects(objects, &mut out);
            }
            Request::Narrow { salt, trees } => {
                out.put_u8(8);
                salt.put(&mut out);
                put_intervals(trees, &mut out);
            }
        }
        out.freeze()
    }

    /// What [`Request::encode`] made.
    ///
    /// # Errors
    ///
    /// [`Undecodable`] for anything else.
    pub(super) fn decode(mut input: Bytes) -> Result<Request> {
        let from = &mut input;
        let request = match u8::take(from)? {
            1 => Request::Check {
                salt: u64::take(from)?,
                digest: <[u8; 16]>::take(from)?,
                levels: Levels::take(from)?,
                unbuilt: Vec::take(from)?,
            },
            2 => Request::Cells { salt: u64::take(from)?, from: number(from)?, count: number(from)? },
            3 => Request::Sums {
                salt: u64::take(from)?,
                coarser_by: u8::take(from)?,
                from: number(from)?,
                trees: number(from)?,
            },
            4 => {
                let (salt, group) = (u64::take(from)?, number(from)?);
                let intervals = take_intervals(from)?;
                Request::KeyCells { salt, group, intervals, from: number(from)?, count: number(from)? }
            }
            5 => {
                let (keyspace, shift) = (KeyspaceId::take(from)?, u8::take(from)?);
                let is_known = shift <= SHIFT_MAX;
                let prefix_max = is_known.then(|| POSITION_MAX >> shift).ok_or(Undecodable)?;
                let mut prefix = 0_u64;
                let asks = list(from, 1, |from| {
                    let gap = number(from)?;
                    prefix =
                        prefix.checked_add(gap >> 1).filter(|end| *end <= prefix_max).ok_or(Undecodable)?;
                    let counter = if gap & 1 == 1 { Some(Counter(number(from)?)) } else { None };
                    Ok(Ask { prefix, counter })
                })?;
                Request::Ask { keyspace, shift, asks }
            }
            6 => {
                let salt = u64::take(from)?;
                let interval = Interval { first: number(from)?, count: number(from)? };
                Request::Fetch { salt, interval, begin: Token(u64::take(from)?) }
            }
            7 => Request::Push { keyspace: KeyspaceId::take(from)?, objects: take_objects(from)? },
            8 => Request::Narrow { salt: u64::take(from)?, trees: take_intervals(from)? },
            _ => return Err(Undecodable),
        };
        if input.is_empty() { Ok(request) } else { Err(Undecodable) }
    }
}

fn put_objects(objects: &[Object], out: &mut BytesMut) {
    put_number(objects.len() as u64, out);
    let mut before = Counter::ZERO;
    for Object { key, record, under } in objects {
        let flags = u64::from(*under != before) << 1 | u64::from(record.is_none());
        put_number((key.len() as u64) << 2 | flags, out);
        if *under != before {
            under.0.put(out);
            before = *under;
        }
        out.put_slice(key);
        record.iter().for_each(|record| record.encode(out));
    }
}

fn take_objects(input: &mut Bytes) -> Result<Vec<Object>> {
    let mut under = Counter::ZERO;
    list(input, 1, |from| {
        let head = number(from)?;
        if head & 2 != 0 {
            let before = std::mem::replace(&mut under, Counter(u64::take(from)?));
            // Each list has one encoding.
            if under == before {
                return Err(Undecodable);
            }
        }
        let key = bytes(from, head >> 2)?;
        let record =
            if head & 1 == 0 { Some(Arc::new(Record::decode(from).map_err(|_| Undecodable)?)) } else { None };
        Ok(Object { key, record, under })
    })
}

fn put_intervals(intervals: &[Interval], out: &mut BytesMut) {
    put_number(intervals.len() as u64, out);
    let mut end = 0;
    for interval in intervals {
        put_numbers([interval.first - end, interval.count], out);
        end = interval.first + interval.count;
    }
}

fn take_intervals(input: &mut Bytes) -> Result<Vec<Interval>> {
    let mut end = 0_u64;
    list(input, 2, |from| {
        let first = end.checked_add(number(from)?).ok_or(Undecodable)?;
        let count = number(from)?;
        end = first.checked_add(count).ok_or(Undecodable)?;
        Ok(Interval { first, count })
    })
}

impl Response {
    /// Its encoding.
    #[must_use]
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Response::Equal => out.put_u8(1),
            Response::Differs { levels, unbuilt, survey, cells } => {
                out.put_u8(2);
                levels.put(&mut out);
                unbuilt.put(&mut out);
                survey.put(&mut out);
                cells.put(&mut out);
            }
            Response::Cells(cells) => {
                out.put_u8(3);
                cells.put(&mut out);
            }
            Response::Sums(trees) => {
                out.put_u8(4);
                put_number(trees.len() as u64, &mut out);
                for tree in trees {
                    put_number(tree.as_ref().map_or(0, |(keys, _)| keys + 1), &mut out);
                    tree.iter().for_each(|(_, sums)| sums.put(&mut out));
                }
            }
            Response::KeyCells { keys, survey, cells } => {
                out.put_u8(5);
                put_number(*keys, &mut out);
                survey.put(&mut out);
                cells.put(&mut out);
            }
            Response::Asked { outcomes, objects } => {
                out.put_u8(6);
                let runs: Vec<&[Outcome]> = outcomes.chunk_by(|one, next| one == next).collect();
                put_number(runs.len() as u64, &mut out);
                for run in runs {
                    let number = match run[0] {
                        Outcome::Objects(0) => 0,
                        Outcome::Objects(count) => count + 1,
                        Outcome::Wanted => 1,
                    };
                    put_numbers([number, run.len() as u64], &mut out);
                }
                put_objects(objects, &mut out);
            }
            Response::Fetched { rest, objects } => {
                out.put_u8(7);
                out.put_u8(u8::from(rest.is_some()));
                rest.iter().for_each(|rest| rest.0.put(&mut out));
                put_objects(objects, &mut out);
            }
            Response::Pushed { objects, others } => {
                out.put_u8(8);
                put_objects(objects, &mut out);
                put_number(others.len() as u64, &mut out);
                others.iter().for_each(|place| put_number(*place, &mut out));
            }
            Response::Forgotten => out.put_u8(9),
            Response::Narrowed { unbuilt, survey, cells } => {
                out.put_u8(10);
                unbuilt.put(&mut out);
                survey.put(&mut out);
                cells.put(&mut out);
            }
        }
        out.freeze()
    }

    /// What [`Response::encode`] made.
    ///
    /// # Errors
    ///
    /// [`Undecodable`] for anything else.
    pub(super) fn decode(mut input: Bytes) -> Result<Response> {
        let from = &mut input;
        let response = match u8::take(from)? {
            1 => Response::Equal,
            2 => Response::Differs {
                levels: Levels::take(from)?,
                unbuilt: Vec::take(from)?,
                survey: Survey::take(from)?,
                cells: Vec::take(from)?,
            },
            3 => Response::Cells(Vec::take(from)?),
            4 => Response::Sums(list(from, 1, |from| match number(from)? {
                0 => Ok(None),
                keys => Ok(Some((keys - 1, Vec::take(from)?))),
            })?),
            5 => Response::KeyCells {
                keys: number(from)?,
                survey: Survey::take(from)?,
                cells: Vec::take(from)?,
            },
            6 => {
                let runs = list(from, 2, |from| {
                    let outcome = match number(from)? {
                        0 => Outcome::Objects(0),
                        1 => Outcome::Wanted,
                        more => Outcome::Objects(more - 1),
                    };
                    let length = usize::try_from(number(from)?).map_err(|_| Undecodable)?;
                    if length > ASKS_MAX { Err(Undecodable) } else { Ok((outcome, length)) }
                })?;
                let outcomes =
                    runs.iter().flat_map(|(outcome, length)| std::iter::repeat_n(*outcome, *length));
                let outcomes: Vec<Outcome> = outcomes.take(ASKS_MAX + 1).collect();
                Response::Asked { outcomes, objects: take_objects(from)? }
            }
            7 => {
                let rest = match u8::take(from)? {
                    0 => None,
                    1 => Some(Token(u64::take(from)?)),
                    _ => return Err(Undecodable),
                };
                Response::Fetched { rest, objects: take_objects(from)? }
            }
            8 => Response::Pushed { objects: take_objects(from)?, others: list(from, 1, number)? },
            9 => Response::Forgotten,
            10 => Response::Narrowed {
                unbuilt: Vec::take(from)?,
                survey: Survey::take(from)?,
                cells: Vec::take(from)?,
            },
            _ => return Err(Undecodable),
        };
        if input.is_empty() { Ok(response) } else { Err(Undecodable) }
    }
}

fn put_number(number: u64, out: &mut BytesMut) {
    let mut rest = number;
    while rest >= 0x80 {
        out.put_u8(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn put_numbers(numbers: [u64; 2], out: &mut BytesMut) {
    numbers.into_iter().for_each(|number| put_number(number, out));
}

fn number(input: &mut Bytes) -> Result<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = u8::take(input)?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return Err(Undecodable);
        }
        number |= bits << shift;
        if byte < 0x80 {
            // Each number has one encoding.
            return if byte == 0 && shift > 0 { Err(Undecodable) } else { Ok(number) };
        }
    }
    Err(Undecodable)
}

fn list<T>(
    input: &mut Bytes,
    bytes_min: usize,
    mut element: impl FnMut(&mut Bytes) -> Result<T>,
) -> Result<Vec<T>> {
    let count = usize::try_from(number(input)?).map_err(|_| Undecodable)?;
    if count > input.len() / bytes_min {
        return Err(Undecodable);
    }
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        elements.push(element(input)?);
    }
    Ok(elements)
}

fn bytes(input: &mut Bytes, count: u64) -> Result<Bytes> {
    let count = usize::try_from(count).map_err(|_| Undecodable)?;
    if count > input.len() { Err(Undecodable) } else { Ok(input.split_to(count)) }
}

impl<T: Part> Part for Vec<T> {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut BytesMut) {
        put_number(self.len() as u64, out);
        self.iter().for_each(|part| part.put(out));
    }

    fn take(input: &mut Bytes) -> Result<Vec<T>> {
        list(input, T::BYTES_MIN, T::take)
    }
}

impl<const N: usize> Part for [u8; N] {
    const BYTES_MIN: usize = N;

    fn put(&self, out: &mut BytesMut) {
        out.put_slice(self);
    }

    fn take(input: &mut Bytes) -> Result<[u8; N]> {
        if input.len() < N {
            return Err(Undecodable);
        }
        let mut array = [0; N];
        input.copy_to_slice(&mut array);
        Ok(array)
    }
}

impl Part for u8 {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut BytesMut) {
        out.put_u8(*self);
    }

    fn take(input: &mut Bytes) -> Result<u8> {
        <[u8; 1]>::take(input).map(|[byte]| byte)
    }
}

impl Part for u64 {
    const BYTES_MIN: usize = 8;

    fn put(&self, out: &mut BytesMut) {
        out.put_u64(*self);
    }

    fn take(input: &mut Bytes) -> Result<u64> {
        <[u8; 8]>::take(input).map(u64::from_be_bytes)
    }
}

impl Part for KeyspaceId {
    const BYTES_MIN: usize = 4;

    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.0);
    }

    fn take(input: &mut Bytes) -> Result<KeyspaceId> {
        <[u8; 4]>::take(input).map(u32::from_be_bytes).map(KeyspaceId)
    }
}

impl Part for PartitionId {
    const BYTES_MIN: usize = 2;

    fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.0);
    }

    fn take(input: &mut Bytes) -> Result<PartitionId> {
        <[u8; 2]>::take(input).map(u16::from_be_bytes).map(PartitionId)
    }
}

impl Part for TreeKind {
    const BYTES_MIN: usize = 5;

    fn put(&self, out: &mut BytesMut) {
        self.keyspace.put(out);
        out.put_u8(self.copies.to_byte());
    }

    fn take(input: &mut Bytes) -> Result<TreeKind> {
        let keyspace = KeyspaceId::take(input)?;
        let copies = CopyCount::from_byte(u8::take(input)?).ok_or(Undecodable)?;
        if copies != copies.most() {
            return Err(Undecodable);
        }
        Ok(TreeKind { keyspace, copies })
    }
}

impl Part for (TreeId, u8) {
    const BYTES_MIN: usize = 8;

    fn put(&self, out: &mut BytesMut) {
        let (TreeId { kind, partition }, bits) = self;
        kind.put(out);
        partition.put(out);
        out.put_u8(*bits);
    }

    fn take(input: &mut Bytes) -> Result<(TreeId, u8)> {
        let kind = TreeKind::take(input)?;
        let partition = PartitionId::take(input)?;
        Ok((TreeId { kind, partition }, u8::take(input)?))
    }
}

impl Part for (TreeKind, u8) {
    const BYTES_MIN: usize = 6;

    fn put(&self, out: &mut BytesMut) {
        self.0.put(out);
        out.put_u8(self.1);
    }

    fn take(input: &mut Bytes) -> Result<(TreeKind, u8)> {
        Ok((TreeKind::take(input)?, u8::take(input)?))
    }
}

impl Part for Levels {
    const BYTES_MIN: usize = 2;

    fn put(&self, out: &mut BytesMut) {
        self.kinds.put(out);
        self.coarse.put(out);
    }

    fn take(input: &mut Bytes) -> Result<Levels> {
        let levels = Levels { kinds: Vec::take(input)?, coarse: Vec::take(input)? };
        let mut bits =
            levels.kinds.iter().map(|(_, bits)| bits).chain(levels.coarse.iter().map(|(_, bits)| bits));
        let is_sorted = levels.kinds.is_sorted_by(|one, next| one.0 < next.0);
        if bits.all(|bits| *bits <= BITS_MAX) && is_sorted { Ok(levels) } else { Err(Undecodable) }
    }
}

impl Part for Survey {
    const BYTES_MIN: usize = 1;

    fn put(&self, out: &mut BytesMut) {
        let bytes = self.to_bytes();
        put_number(bytes.len() as u64, out);
        out.put_slice(&bytes);
    }

    fn take(input: &mut Bytes) -> Result<Survey> {
        let count = number(input)?;
        Survey::from_bytes(&bytes(input, count)?).ok_or(Undecodable)
    }
}

impl Part for Cell {
    const BYTES_MIN: usize = CELL_BYTES;

    fn put(&self, out: &mut BytesMut) {
        out.put_slice(&self.to_bytes());
    }

    fn take(input: &mut Bytes) -> Result<Cell> {
        Cell::from_bytes(&<[u8; CELL_BYTES]>::take(input)?).ok_or(Undecodable)
    }
}

impl Part for Residue {
    const BYTES_MIN: usize = Residue::BYTES;

    fn put(&self, out: &mut BytesMut) {
        out.put_slice(&self.to_bytes());
    }

    fn take(input: &mut Bytes) -> Result<Residue> {
        Residue::from_bytes(<[u8; Residue::BYTES]>::take(input)?).ok_or(Undecodable)
    }
}

impl Part for Sum {
    const BYTES_MIN: usize = 2 * Residue::BYTES;

    fn put(&self, out: &mut BytesMut) {
        self.weights.put(out);
        self.moments.put(out);
    }

    fn take(input: &mut Bytes) -> Result<Sum> {
        Ok(Sum { weights: Residue::take(input)?, moments: Residue::take(input)? })
    }
}
