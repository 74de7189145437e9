//! What a node writes down about itself and reads back when it starts: the cluster document, the marks of its
//! copies, how far it saw its peers' stores come, and whether it stopped in good order. (Its hints are read by
//! themselves.)
//!
//! All of it stands in [`Table::Meta`], sealed like records. What cannot be read is as if it were not there: a node
//! without a document asks its peers for it, and a copy without a mark is filling.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ring::{ClusterDocument, Epoch, NodeId, PartitionId, StoreId};

use crate::{
    copies::Mark,
    message::StartId,
    peers::{PeerMemory, Unconfirmed},
    storage::{ReadError, Sequence, Store, Table, open_stored, seal_stored},
};

/// Where the cluster document is stored.
pub(crate) const DOCUMENT: &[u8] = b"document";
/// Where it is stored what is remembered of the peers.
pub(crate) const PEERS: &[u8] = b"peers";
/// Where the last process that stopped in good order left its name.
const CLEAN: &[u8] = b"clean";
/// Facts read at a time.
const FACTS_AT_ONCE: usize = 4096;

/// What was read back, besides the document.
pub(crate) struct Recovered {
    pub(crate) marks: BTreeMap<PartitionId, Mark>,
    pub(crate) peers: Vec<(NodeId, PeerMemory)>,
    pub(crate) clean: Option<StartId>,
}

impl Recovered {
    /// Reads it.
    pub(crate) fn read<S: Store>(store: &S) -> Recovered {
        let get = |key: &[u8]| {
            let stored = store.get(Table::Meta, key).ok().flatten()?;
            open_stored(key, &stored).ok()
        };
        let peers = get(PEERS).map(decode_peers).unwrap_or_default();
        let clean = get(CLEAN).filter(|payload| payload.len() == 8);
        let clean = clean.map(|mut payload| StartId(payload.get_u64()));
        Recovered { marks: read_marks(store), peers, clean }
    }

    /// Whether a copy was whole when the store was last written to, and nothing that it acknowledged from memory
    /// can have been lost since.
    pub(crate) fn was_whole(
        &self,
        partition: PartitionId,
        (store, recorded): (StoreId, Epoch),
        gained: Epoch,
    ) -> bool {
        self.marks.get(&partition).is_some_and(|mark| {
            let is_ours = mark.store == store && mark.recorded == recorded && mark.gained == gained;
            mark.whole && is_ours && (mark.memory.is_none() || mark.memory == self.clean)
        })
    }
}

/// The cluster document that a store holds, as far as it is committed; none if it holds none that can be trusted.
pub fn read_document(store: &impl Store) -> Option<Arc<ClusterDocument>> {
    read_document_or_fail(store).ok().flatten()
}

/// As [`read_document`]; an error if the store could not be read, and may be later.
pub(crate) fn read_document_or_fail(store: &impl Store) -> Result<Option<Arc<ClusterDocument>>, ReadError> {
    let decode = |stored: Bytes| {
        let payload = open_stored(DOCUMENT, &stored).ok()?;
        let document: ClusterDocument = postcard::from_bytes(&payload).ok()?;
        document.validate().is_ok().then(|| Arc::new(document))
    };
    Ok(store.get(Table::Meta, DOCUMENT)?.and_then(decode))
}

/// The marks of all copies.
fn read_marks<S: Store>(store: &S) -> BTreeMap<PartitionId, Mark> {
    let mark = |key: &Bytes, stored: &Bytes| {
        let mark = open_stored(key, stored).ok().and_then(Mark::decode)?;
        Some((Mark::partition(key)?, mark))
    };
    // Of what cannot be read nothing is assumed: those copies fill.
    read_under(store, Mark::PREFIX, None, mark).0.into_iter().collect()
}

/// What `decode` makes of each fact whose key begins with `prefix`, in the order of the keys, from the first or from after
/// a key; and after which key the store could not be read, if it could not. (No key goes on with more than twenty of the
/// highest byte.)
pub(crate) fn read_under<S: Store, T>(
    store: &S,
    prefix: &'static [u8],
    from: Option<Bytes>,
    decode: impl Fn(&Bytes, &Bytes) -> Option<T>,
) -> (Vec<T>, Option<Bytes>) {
    let mut decoded = Vec::new();
    let end = [prefix, &[0xff; 20]].concat();
    let mut after = from.unwrap_or(Bytes::from_static(prefix));
    let mut at_once = FACTS_AT_ONCE;
    loop {
        let Ok(found) = store.scan(Table::Meta, Some(&after), &end, at_once) else {
            // What comes before the place that cannot be read is read.
            at_once /= 2;
            if at_once == 0 {
                return (decoded, Some(after));
            }
            continue;
        };
        let Some((last, _)) = found.last() else { return (decoded, None) };
        // Copied out: it may be part of a larger block.
        after = Bytes::copy_from_slice(last);
        decoded.extend(found.iter().filter_map(|(key, stored)| decode(key, stored)));
    }
}

/// The document as it is stored.
pub(crate) fn document_to_store(document: &ClusterDocument) -> (Bytes, Bytes) {
    let payload = postcard::to_allocvec(document).expect("a document has nothing that cannot be encoded");
    let sealed = seal_stored(DOCUMENT, |out| out.put_slice(&payload), payload.len());
    (Bytes::from_static(DOCUMENT), sealed)
}

/// What is remembered of the peers, as it is stored. For each: its id, a byte of flags that says which of the rest
/// there are, store, sequence, process, verdict, lowest unconfirmed recovery, a byte that counts the unconfirmed
/// processes that follow, and a byte that counts the former stores and their sequences that follow; all big-endian.
pub(crate) fn peers_to_store<'a>(
    peers: impl ExactSizeIterator<Item = (NodeId, &'a PeerMemory)>,
) -> (Bytes, Bytes) {
    let capacity = peers.len() * (PEER_BYTES + 8);
    let encode = |out: &mut BytesMut| {
        for (node, memory) in peers {
            let (store, sequence) = memory.seen.unwrap_or((StoreId(0), Sequence(0)));
            let (start, verdict) = memory.judged.unwrap_or((StartId(0), None));
            let starts = memory.unconfirmed.as_ref().map_or(&[][..], |unconfirmed| &unconfirmed.starts);
            let flags = [
                memory.seen.is_some(),
                memory.judged.is_some(),
                verdict.is_some(),
                memory.unconfirmed.is_some(),
            ];
            out.put_u32(node.0);
            out.put_u8(flags.iter().rev().fold(0, |byte, flag| byte << 1 | u8::from(*flag)));
            out.put_u64(store.0);
            out.put_u64(sequence.0);
            out.put_u64(start.0);
            out.put_u64(verdict.unwrap_or_default().0);
            out.put_u64(memory.unconfirmed.as_ref().map_or(0, |unconfirmed| unconfirmed.lowest.0));
            out.put_u8(u8::try_from(starts.len()).expect("a handful"));
            starts.iter().for_each(|start| out.put_u64(start.0));
            out.put_u8(u8::try_from(memory.before.len()).expect("a handful"));
            for (store, sequence) in &memory.before {
                out.put_u64(store.0);
                out.put_u64(sequence.0);
            }
        }
    };
    (Bytes::from_static(PEERS), seal_stored(PEERS, encode, capacity))
}

/// The mark of a stop in good order, as it is stored.
pub(crate) fn clean_to_store(start: StartId) -> (Bytes, Bytes) {
    (Bytes::from_static(CLEAN), seal_stored(CLEAN, |out| out.put_u64(start.0), 8))
}

/// Bytes of one peer's entry, without its unconfirmed processes.
const PEER_BYTES: usize = 46;

fn decode_peers(mut payload: Bytes) -> Vec<(NodeId, PeerMemory)> {
    let mut peers = Vec::with_capacity(payload.len() / PEER_BYTES);
    while payload.len() >= PEER_BYTES {
        let (node, flags) = (NodeId(payload.get_u32()), payload.get_u8());
        let (store, sequence) = (StoreId(payload.get_u64()), Sequence(payload.get_u64()));
        let (start, verdict) = (StartId(payload.get_u64()), Sequence(payload.get_u64()));
        let (lowest, count) = (Sequence(payload.get_u64()), usize::from(payload.get_u8()));
        if payload.len() <= count * 8 {
            break;
        }
        let starts = (0..count).map(|_| StartId(payload.get_u64())).collect();
        let count = usize::from(payload.get_u8());
        if payload.len() < count * 16 {
            break;
        }
        let before = (0..count).map(|_| (StoreId(payload.get_u64()), Sequence(payload.get_u64()))).collect();
        let has = |bit: u8| flags & bit != 0;
        let memory = PeerMemory {
            seen: has(1).then_some((store, sequence)),
            before,
            judged: has(2).then_some((start, has(4).then_some(verdict))),
            unconfirmed: has(8).then_some(Unconfirmed { lowest, starts }),
        };
        peers.push((node, memory));
    }
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_peers_reads_back() {
        let unconfirmed = Unconfirmed { lowest: Sequence(7), starts: vec![StartId(8), StartId(9)] };
        let all = [
            (NodeId(1), PeerMemory::default()),
            (
                NodeId(2),
                PeerMemory {
                    seen: Some((StoreId(3), Sequence(4))),
                    before: vec![(StoreId(10), Sequence(11)), (StoreId(12), Sequence(13))],
                    judged: Some((StartId(5), Some(Sequence(6)))),
                    unconfirmed: Some(unconfirmed),
                },
            ),
            (NodeId(3), PeerMemory { judged: Some((StartId(8), None)), ..PeerMemory::default() }),
        ];
        let (key, value) = peers_to_store(all.iter().map(|(node, memory)| (*node, memory)));
        assert_eq!(decode_peers(open_stored(&key, &value).unwrap()), all);
    }
}
