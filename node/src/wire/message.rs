//! What the kinds of messages say.
//!
//! ```text
//!  1 hello              cluster (option of 8), recovered (8), lowest (8), unconfirmed (list of 8)
//!  2 welcome            start (8), went back from (option of 8), floor (8)
//!  3 document request   nothing
//!  4 document           the cluster document (serde)
//!  5 forward            tag, remaining (duration), request, as clients send it
//!  6 forwarded          tag, reply, as clients get it
//!  7 merge              tag, object, durability (1), path (1), under (8), record
//!  8 merged             tag, 1 applied: gained (8); 2 refused: why (1), and of those behind the watermark (8)
//!  9 read               tag, object, kind (1), n (option of 1), durable (bool)
//! 10 answer             tag, 1 data: under (8), option of record; 2 digest (16); 3 filling; 4 refused; 5 stale epoch; 6 not owner
//! 11 exchange           tag, option of standing, question (bytes), as `antientropy::exchange` has it
//! 12 exchange answer    tag, option of standing, answer (option of bytes)
//! 13 declined           tag
//! 14 agreement          about documents (serde)
//! 15 hint offer         waiting (4)
//! 16 hint grant         merges (4)
//! 17 exchange ended     exchange (8), is complete (bool), left out (list of 2), begun (duration), differed (4)
//!
//! tag       operation (8), question (4)
//! object    bytes: its name in encoded form, with its token
//! record    as `antientropy::version` has it
//! standing  list of runs: partitions (4), floor (8), lowest (8), watermark (8), promise (8), its epoch (8), filling (8)
//! ```
//!
//! The tables below have the codes of choices. Kinds from 18 are free; one whose payload is a serde value goes as the
//! document does.

use std::sync::Arc;

use antientropy::version::{Counter, Record, VersionDigest};
use bytes::{BufMut, Bytes, BytesMut};
use client::{
    wire::{
        Element, Field, Malformed, decode_reply, decode_request, encode_reply, encode_request, put_serde,
        take_serde,
    },
    wire_fields, wire_newtypes, wire_variants,
};

use super::DecodeError;
use crate::{
    message::{
        ExchangeAnswer, MergeOutcome, MergePath, MergeRefusal, Message, ReadAnswer, ReadKind, Recovery, Run,
        Standing, StartId, Tag,
    },
    storage::{ObjectKey, Sequence},
};

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const DOCUMENT_REQUEST: u8 = 3;
const DOCUMENT: u8 = 4;
const FORWARD: u8 = 5;
const FORWARDED: u8 = 6;
const MERGE: u8 = 7;
const MERGED: u8 = 8;
const READ: u8 = 9;
const ANSWER: u8 = 10;
const EXCHANGE: u8 = 11;
const EXCHANGE_ANSWER: u8 = 12;
const DECLINED: u8 = 13;
const AGREEMENT: u8 = 14;
const HINT_OFFER: u8 = 15;
const HINT_GRANT: u8 = 16;
const EXCHANGE_ENDED: u8 = 17;

const DATA: u8 = 1;
const DIGEST: u8 = 2;
const FILLING: u8 = 3;
const REFUSED: u8 = 4;
const STALE_EPOCH: u8 = 5;
const NOT_OWNER: u8 = 6;

wire_newtypes!(StartId, Sequence);
wire_fields!(Tag { operation, question });
wire_fields!(Standing { runs });
wire_fields!(ExchangeAnswer { standing, answer });
wire_fields!(Recovery { recovered, lowest, unconfirmed });

wire_variants!(MergePath, "path of a merge", {
    1 => Write,
    2 => ReadRepair,
    3 => Hint,
    4 => AntiEntropy,
    5 => Movement,
    6 => StandIn { target },
});
wire_variants!(MergeOutcome, "outcome of a merge", {
    1 => Applied { gained },
    2 => Refused(refusal),
});
wire_variants!(ReadKind, "kind of read", { 1 => Data, 2 => Digest });

impl Element for StartId {
    const BYTES_MIN: usize = 8;
}

impl Field for Run {
    fn put_to(&self, out: &mut BytesMut) {
        let Run { partitions, floor, lowest, watermark, promise, promise_epoch, filling } = *self;
        partitions.put_to(out);
        [floor.0, lowest.0, watermark.0, promise.0, promise_epoch.0, filling]
            .iter()
            .for_each(|number| number.put_to(out));
    }

    fn take_from(input: &mut Bytes) -> Result<Run, Malformed> {
        Ok(Run {
            partitions: Field::take_from(input)?,
            floor: take_counter(input)?,
            lowest: take_counter(input)?,
            watermark: take_counter(input)?,
            promise: take_counter(input)?,
            promise_epoch: Field::take_from(input)?,
            filling: Field::take_from(input)?,
        })
    }
}

impl Element for Run {
    const BYTES_MIN: usize = 52;
}

impl Field for MergeRefusal {
    fn put_to(&self, out: &mut BytesMut) {
        let (code, watermark) = match self {
            MergeRefusal::StaleEpoch => (1, None),
            MergeRefusal::NotOwner => (2, None),
            MergeRefusal::Mismatched => (3, None),
            MergeRefusal::Overloaded => (4, None),
            MergeRefusal::StorageFailed => (5, None),
            MergeRefusal::Late => (6, None),
            MergeRefusal::Behind { watermark } => (7, Some(watermark.0)),
        };
        out.put_u8(code);
        watermark.iter().for_each(|watermark| watermark.put_to(out));
    }

    fn take_from(input: &mut Bytes) -> Result<MergeRefusal, Malformed> {
        Ok(match u8::take_from(input)? {
            1 => MergeRefusal::StaleEpoch,
            2 => MergeRefusal::NotOwner,
            3 => MergeRefusal::Mismatched,
            4 => MergeRefusal::Overloaded,
            5 => MergeRefusal::StorageFailed,
            6 => MergeRefusal::Late,
            7 => MergeRefusal::Behind { watermark: take_counter(input)? },
            value => return Err(Malformed::UnknownValue { of: "refusal of a merge", value }),
        })
    }
}

fn take_counter(input: &mut Bytes) -> Result<Counter, Malformed> {
    u64::take_from(input).map(Counter)
}

/// The byte that says what a message is.
pub(super) fn kind(message: &Message) -> u8 {
    match message {
        Message::Hello { .. } => HELLO,
        Message::Welcome { .. } => WELCOME,
        Message::DocumentRequest => DOCUMENT_REQUEST,
        Message::Document(_) => DOCUMENT,
        Message::Forward { .. } => FORWARD,
        Message::Forwarded { .. } => FORWARDED,
        Message::Merge { .. } => MERGE,
        Message::Merged { .. } => MERGED,
        Message::Read { .. } => READ,
        Message::Answer { .. } => ANSWER,
        Message::Exchange { .. } => EXCHANGE,
        Message::ExchangeAnswer { .. } => EXCHANGE_ANSWER,
        Message::Declined { .. } => DECLINED,
        Message::Agreement(_) => AGREEMENT,
        Message::HintOffer { .. } => HINT_OFFER,
        Message::HintGrant { .. } => HINT_GRANT,
        Message::ExchangeEnded { .. } => EXCHANGE_ENDED,
    }
}

/// Appends what a message of its kind says.
pub(super) fn put(message: &Message, out: &mut BytesMut) {
    match message {
        Message::Hello { number, cluster, recovery, voter, digest } => {
            number.put_to(out);
            cluster.put_to(out);
            recovery.put_to(out);
            voter.put_to(out);
            digest.put_to(out);
        }
        Message::Welcome { start, number, went_back_from, floor } => {
            start.put_to(out);
            number.put_to(out);
            went_back_from.put_to(out);
            floor.0.put_to(out);
        }
        Message::DocumentRequest => {}
        Message::Document(document) => put_serde(&**document, out),
        Message::Forward { tag, request, remaining } => {
            tag.put_to(out);
            remaining.put_to(out);
            encode_request(request, out);
        }
        Message::Forwarded { tag, reply } => {
            tag.put_to(out);
            encode_reply(reply, out);
        }
        Message::Merge { tag, object, record, under, durability, path } => {
            tag.put_to(out);
            object.encoded().put_to(out);
            durability.put_to(out);
            path.put_to(out);
            under.0.put_to(out);
            record.encode(out);
        }
        Message::Merged { tag, outcome } => {
            tag.put_to(out);
            outcome.put_to(out);
        }
        Message::Read { tag, object, kind, n, durable } => {
            tag.put_to(out);
            object.encoded().put_to(out);
            kind.put_to(out);
            n.put_to(out);
            durable.put_to(out);
        }
        Message::Answer { tag, answer } => {
            tag.put_to(out);
            put_answer(answer, out);
        }
        Message::Exchange { tag, standing, question } => {
            tag.put_to(out);
            standing.put_to(out);
            question.put_to(out);
        }
        Message::ExchangeAnswer { tag, answer } => {
            tag.put_to(out);
            answer.put_to(out);
        }
        Message::Declined { tag } => tag.put_to(out),
        Message::HintOffer { waiting } => waiting.put_to(out),
        Message::HintGrant { merges } => merges.put_to(out),
        Message::ExchangeEnded { exchange, is_complete, left_out, begun, differed } => {
            exchange.put_to(out);
            is_complete.put_to(out);
            left_out.put_to(out);
            begun.put_to(out);
            differed.put_to(out);
        }
        Message::Agreement(agreement) => put_serde(&**agreement, out),
    }
}

/// Takes what a message of this kind says.
pub(super) fn take(kind: u8, input: &mut Bytes) -> Result<Message, DecodeError> {
    Ok(match kind {
        HELLO => Message::Hello {
            number: Field::take_from(input)?,
            cluster: Field::take_from(input)?,
            recovery: Field::take_from(input)?,
            voter: Field::take_from(input)?,
            digest: Field::take_from(input)?,
        },
        WELCOME => Message::Welcome {
            start: Field::take_from(input)?,
            number: Field::take_from(input)?,
            went_back_from: Field::take_from(input)?,
            floor: take_counter(input)?,
        },
        DOCUMENT_REQUEST => Message::DocumentRequest,
        DOCUMENT => Message::Document(Arc::new(take_serde(input)?)),
        FORWARD => Message::Forward {
            tag: Field::take_from(input)?,
            remaining: Field::take_from(input)?,
            request: Box::new(decode_request(input)?),
        },
        FORWARDED => {
            Message::Forwarded { tag: Field::take_from(input)?, reply: Box::new(decode_reply(input)?) }
        }
        MERGE => Message::Merge {
            tag: Field::take_from(input)?,
            object: take_object(input)?,
            durability: Field::take_from(input)?,
            path: Field::take_from(input)?,
            under: take_counter(input)?,
            record: Arc::new(Record::decode(input)?),
        },
        MERGED => Message::Merged { tag: Field::take_from(input)?, outcome: Field::take_from(input)? },
        READ => Message::Read {
            tag: Field::take_from(input)?,
            object: take_object(input)?,
            kind: Field::take_from(input)?,
            n: Field::take_from(input)?,
            durable: Field::take_from(input)?,
        },
        ANSWER => Message::Answer { tag: Field::take_from(input)?, answer: take_answer(input)? },
        EXCHANGE => Message::Exchange {
            tag: Field::take_from(input)?,
            standing: Field::take_from(input)?,
            question: Field::take_from(input)?,
        },
        EXCHANGE_ANSWER => {
            Message::ExchangeAnswer { tag: Field::take_from(input)?, answer: Field::take_from(input)? }
        }
        DECLINED => Message::Declined { tag: Field::take_from(input)? },
        HINT_OFFER => Message::HintOffer { waiting: Field::take_from(input)? },
        HINT_GRANT => Message::HintGrant { merges: Field::take_from(input)? },
        EXCHANGE_ENDED => Message::ExchangeEnded {
            exchange: Field::take_from(input)?,
            is_complete: Field::take_from(input)?,
            left_out: Field::take_from(input)?,
            begun: Field::take_from(input)?,
            differed: Field::take_from(input)?,
        },
        AGREEMENT => Message::Agreement(Box::new(take_serde(input)?)),
        unknown => return Err(Malformed::UnknownKind(unknown).into()),
    })
}

fn put_answer(answer: &ReadAnswer, out: &mut BytesMut) {
    match answer {
        ReadAnswer::Data(record, under) => {
            out.put_u8(DATA);
            under.0.put_to(out);
            record.is_some().put_to(out);
            record.iter().for_each(|record| record.encode(out));
        }
        ReadAnswer::Digest(digest) => {
            out.put_u8(DIGEST);
            out.put_slice(&digest.0);
        }
        ReadAnswer::Filling => out.put_u8(FILLING),
        ReadAnswer::Refused => out.put_u8(REFUSED),
        ReadAnswer::StaleEpoch => out.put_u8(STALE_EPOCH),
        ReadAnswer::NotOwner => out.put_u8(NOT_OWNER),
    }
}

fn take_answer(input: &mut Bytes) -> Result<ReadAnswer, DecodeError> {
    Ok(match u8::take_from(input)? {
        DATA => {
            let under = take_counter(input)?;
            let is_some = bool::take_from(input)?;
            let record = if is_some { Some(Arc::new(Record::decode(input)?)) } else { None };
            ReadAnswer::Data(record, under)
        }
        DIGEST => ReadAnswer::Digest(take_digest(input)?),
        FILLING => ReadAnswer::Filling,
        REFUSED => ReadAnswer::Refused,
        STALE_EPOCH => ReadAnswer::StaleEpoch,
        NOT_OWNER => ReadAnswer::NotOwner,
        value => return Err(Malformed::UnknownValue { of: "answer", value }.into()),
    })
}

/// A name, which has to be an object's.
fn take_object(input: &mut Bytes) -> Result<ObjectKey, DecodeError> {
    ObjectKey::decode(&Bytes::take_from(input)?).ok_or(DecodeError::NotAnObject)
}

fn take_digest(input: &mut Bytes) -> Result<VersionDigest, DecodeError> {
    Ok(VersionDigest(u128::take_from(input)?.to_be_bytes()))
}
