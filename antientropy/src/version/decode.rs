//! Reading records back: whatever the bytes are, an answer and no panic.
//!
//! The format is in `codec`. Lengths and counts are checked against what is left of the input before anything is
//! allocated or sliced, so a hostile frame costs no more than its own size times a small factor.

use bytes::{Buf, Bytes};
use thiserror::Error;

use super::{
    Actor, Context, CopyCount, Counter, Dot, LwwVersion, Record, RequestId, SiblingSet, UnixMillis, Value,
    codec::{
        ENTRY_LEN, FLAG_EXPIRES, FLAG_REQUEST, FORMAT_VERSION, KIND_LWW, KIND_SIBLINGS, SIBLING_LEN_MIN,
        VARINT_LEN_MAX,
    },
};

/// Why bytes are not a record. From a disk it means damage, from a peer a bug or a newer version; they are never
/// taken for a record in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The input ends within the record, or a count or length is above what is left of it.
    #[error("a record cut short")]
    Truncated,
    /// A format that this node does not know.
    #[error("a record of the unknown format version {0}")]
    UnknownVersion(u8),
    /// Neither siblings nor lww.
    #[error("a record of the unknown kind {0}")]
    UnknownKind(u8),
    /// A byte of copies, flags or liveness with a bit that this format does not define.
    #[error("a record with the reserved bits {0:#04x}")]
    ReservedBits(u8),
    /// A varint not in its shortest form or above 32 bits, or a request of zero spelt out.
    #[error("a record with a number that has a shorter form, or is too large")]
    NonCanonicalNumber,
    /// A counter that no dot has.
    #[error("a record with the counter {0}, which no dot has")]
    BadCounter(u64),
    /// The entries of the context are not strictly ascending by actor.
    #[error("a record with its actors out of order")]
    ActorsOutOfOrder,
    /// The values are not strictly descending by dot: out of order, or two under one dot.
    #[error("a record with its values out of order")]
    ValuesOutOfOrder,
    /// A live value that the context does not cover.
    #[error("a record with a live value that its context does not cover")]
    DotNotCovered,
    /// A version that claims to have seen itself or later ones.
    #[error("a record that claims to have been written before what its writer saw")]
    SeenAboveDot,
}

impl Record {
    /// Takes one record off the front of the input. Values are slices of it: they share its memory, and keep all
    /// of it alive.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`]; the input is then left as it was.
    pub fn decode(input: &mut Bytes) -> Result<Record, DecodeError> {
        let mut reader = Reader { input, at: 0 };
        let version = reader.u8()?;
        if version != FORMAT_VERSION {
            return Err(DecodeError::UnknownVersion(version));
        }
        let kind = reader.u8()?;
        let copies = reader.u8()?;
        let copies = CopyCount::from_byte(copies).ok_or(DecodeError::ReservedBits(copies))?;
        let record = match kind {
            KIND_SIBLINGS => Record::Siblings(reader.siblings(copies)?),
            KIND_LWW => Record::Lww(reader.lww(copies)?),
            unknown => return Err(DecodeError::UnknownKind(unknown)),
        };
        let len = reader.at;
        input.advance(len);
        Ok(record)
    }
}

/// Reads from the front of an input that it leaves in place, so that a failure consumes nothing.
struct Reader<'a> {
    input: &'a Bytes,
    /// How many bytes have been read. Never above the length of the input.
    at: usize,
}

impl Reader<'_> {
    fn siblings(&mut self, copies: CopyCount) -> Result<SiblingSet, DecodeError> {
        let count = self.count(ENTRY_LEN)?;
        let mut entries: Vec<(Actor, Counter)> = Vec::with_capacity(count);
        for _ in 0..count {
            let actor = Actor(self.u64()?);
            if entries.last().is_some_and(|last| last.0 >= actor) {
                return Err(DecodeError::ActorsOutOfOrder);
            }
            entries.push((actor, self.counter()?));
        }
        let count = self.count(SIBLING_LEN_MIN)?;
        let mut values: Vec<(Dot, Value)> = Vec::with_capacity(count);
        for _ in 0..count {
            let counter = self.counter()?;
            let &(actor, seen) = entries.get(self.varint()?).ok_or(DecodeError::DotNotCovered)?;
            if seen < counter {
                return Err(DecodeError::DotNotCovered);
            }
            let dot = Dot { counter, actor };
            if values.last().is_some_and(|last| last.0 <= dot) {
                return Err(DecodeError::ValuesOutOfOrder);
            }
            values.push((dot, self.value()?));
        }
        Ok(SiblingSet::from_parts(Context::from_entries(copies, entries), values))
    }

    fn lww(&mut self, copies: CopyCount) -> Result<LwwVersion, DecodeError> {
        let dot = Dot { counter: self.counter()?, actor: Actor(self.u64()?) };
        let seen = Counter(self.u64()?);
        if seen >= dot.counter {
            return Err(DecodeError::SeenAboveDot);
        }
        let value = match self.u8()? {
            0 => None,
            1 => Some(self.value()?),
            unknown => return Err(DecodeError::ReservedBits(unknown)),
        };
        Ok(LwwVersion { dot, seen, value, copies })
    }

    fn value(&mut self) -> Result<Value, DecodeError> {
        let flags = self.u8()?;
        if flags & !(FLAG_EXPIRES | FLAG_REQUEST) != 0 {
            return Err(DecodeError::ReservedBits(flags));
        }
        let expires = if flags & FLAG_EXPIRES == 0 { None } else { Some(UnixMillis(self.u64()?)) };
        let request = if flags & FLAG_REQUEST == 0 { RequestId::NONE } else { self.request()? };
        let len = self.count(1)?;
        let bytes = self.input.slice(self.at..self.at + len);
        self.at += len;
        Ok(Value { bytes, expires, request })
    }

    fn request(&mut self) -> Result<RequestId, DecodeError> {
        let request = RequestId(u128::from_be_bytes(self.chunk()?));
        if request == RequestId::NONE { Err(DecodeError::NonCanonicalNumber) } else { Ok(request) }
    }

    fn counter(&mut self) -> Result<Counter, DecodeError> {
        let counter = Counter(self.u64()?);
        if counter.is_mintable() { Ok(counter) } else { Err(DecodeError::BadCounter(counter.0)) }
    }

    /// A count of things of at least `len_min` bytes each, of which the input has to have room for all.
    fn count(&mut self, len_min: usize) -> Result<usize, DecodeError> {
        let count = self.varint()?;
        let fits = count <= (self.input.len() - self.at) / len_min;
        if fits { Ok(count) } else { Err(DecodeError::Truncated) }
    }

    fn varint(&mut self) -> Result<usize, DecodeError> {
        let mut number = 0;
        for shift in (0..VARINT_LEN_MAX as u32).map(|index| 7 * index) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || shift == 0;
                return match u32::try_from(number) {
                    Ok(number) if shortest => Ok(number as usize),
                    Ok(_) | Err(_) => Err(DecodeError::NonCanonicalNumber),
                };
            }
        }
        Err(DecodeError::NonCanonicalNumber)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.chunk().map(u8::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.chunk().map(u64::from_be_bytes)
    }

    fn chunk<const LEN: usize>(&mut self) -> Result<[u8; LEN], DecodeError> {
        let chunk = *self.input[self.at..].first_chunk().ok_or(DecodeError::Truncated)?;
        self.at += LEN;
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::version::codec::{
        put_varint,
        samples::{encoded, lww, siblings},
        varint_len,
    };

    fn decoded(bytes: &[u8]) -> Result<Record, DecodeError> {
        Record::decode(&mut Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn records_follow_one_another_and_values_share_the_inputs_memory() {
        let bytes = [encoded(&siblings()), encoded(&lww()), b"rest".to_vec()].concat();
        let mut input = Bytes::from(bytes);
        let range = input.as_ptr_range();
        for expected in [siblings(), lww()] {
            let record = Record::decode(&mut input).unwrap();
            assert_eq!(record, expected);
            assert!(
                record.live(UnixMillis(0)).iter().all(|(_, value)| range.contains(&value.bytes.as_ptr()))
            );
        }
        assert_eq!(input, "rest");
    }

    #[test]
    fn a_record_cut_short_is_refused_and_nothing_is_consumed() {
        for bytes in [encoded(&siblings()), encoded(&lww())] {
            for len in 0..bytes.len() {
                let mut input = Bytes::copy_from_slice(&bytes[..len]);
                assert_eq!(Record::decode(&mut input), Err(DecodeError::Truncated), "cut to {len}");
                assert_eq!(input.len(), len);
            }
        }
    }

    #[test]
    fn a_count_above_the_input_is_refused_before_anything_is_allocated() {
        let entries = [vec![1, 1, 0x80], vec![0xff, 0xff, 0xff, 0xff, 0x0f]].concat();
        assert_eq!(decoded(&entries), Err(DecodeError::Truncated));
        let values = [vec![1, 1, 0x80, 0], vec![0xff, 0xff, 0xff, 0xff, 0x0f]].concat();
        assert_eq!(decoded(&values), Err(DecodeError::Truncated));
    }

    #[test]
    fn whatever_is_not_canonical_is_refused() {
        // (offset, new bytes, why) into the pinned encodings above.
        let siblings_cases: [(usize, &[u8], DecodeError); 13] = [
            (0, &[2], DecodeError::UnknownVersion(2)),
            (1, &[3], DecodeError::UnknownKind(3)),
            (2, &[0x88], DecodeError::ReservedBits(0x88)),
            (4, &0xa0_u64.to_be_bytes(), DecodeError::ActorsOutOfOrder),
            (4, &0xa1_u64.to_be_bytes(), DecodeError::ActorsOutOfOrder),
            (12, &[0; 8], DecodeError::BadCounter(0)),
            (12, &[0xff; 8], DecodeError::BadCounter(u64::MAX)),
            (37, &0x0104_u64.to_be_bytes(), DecodeError::DotNotCovered),
            (45, &[2], DecodeError::DotNotCovered),
            (37, &0x0101_u64.to_be_bytes(), DecodeError::ValuesOutOfOrder),
            (46, &[4], DecodeError::ReservedBits(4)),
            (46, &[0, 0x81, 0x00], DecodeError::NonCanonicalNumber),
            (67, &[0; 16], DecodeError::NonCanonicalNumber),
        ];
        for (offset, bytes, error) in siblings_cases {
            let mut encoded = encoded(&siblings());
            encoded[offset..offset + bytes.len()].copy_from_slice(bytes);
            assert_eq!(decoded(&encoded), Err(error), "at {offset}");
        }
        let lww_cases: [(usize, &[u8], DecodeError); 3] = [
            (3, &[0; 8], DecodeError::BadCounter(0)),
            (19, &0x0102_u64.to_be_bytes(), DecodeError::SeenAboveDot),
            (27, &[2], DecodeError::ReservedBits(2)),
        ];
        for (offset, bytes, error) in lww_cases {
            let mut encoded = encoded(&lww());
            encoded[offset..offset + bytes.len()].copy_from_slice(bytes);
            assert_eq!(decoded(&encoded), Err(error), "at {offset}");
        }
    }

    #[test]
    fn two_values_under_one_dot_are_refused() {
        let mut encoded = encoded(&siblings());
        // The second value takes the first one's counter and actor.
        encoded.copy_within(37..46, 49);
        assert_eq!(decoded(&encoded), Err(DecodeError::ValuesOutOfOrder));
    }

    #[test]
    fn varints_have_one_form() {
        for number in
            [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, 0x1f_ffff, 0x20_0000, 0xfff_ffff, 0x1000_0000, 0xffff_ffff]
        {
            let mut out = BytesMut::new();
            put_varint(number, &mut out);
            assert_eq!(out.len(), varint_len(number));
            let input = out.freeze();
            assert_eq!(Reader { input: &input, at: 0 }.varint(), Ok(number));
        }
        for bytes in [&[0x80, 0x00][..], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[0xff; 6], &[0x80; 5]] {
            let input = Bytes::copy_from_slice(bytes);
            assert_eq!(Reader { input: &input, at: 0 }.varint(), Err(DecodeError::NonCanonicalNumber));
        }
    }
}
