//! What a node writes down about itself and reads back when it starts: the cluster document, the marks of its
//! copies, how far it saw its peers' stores come, and whether it stopped in good order.
//!
//! All of it stands in [`Table::Meta`], sealed like records. What cannot be read is as if it were not there: a node
//! without a document asks its peers for it, and a copy without a mark is filling.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ring::{ClusterDocument, NodeId, PartitionId, StoreId};

use crate::{
    copies::Mark,
    message::StartId,
    storage::{Sequence, Store, Table, open_stored, seal_stored},
};

/// Where the cluster document is stored.
const DOCUMENT: &[u8] = b"document";
/// Where it is stored how far peers' stores were seen to come.
const SEEN: &[u8] = b"seen";
/// Where the last process that stopped in good order left its name.
const CLEAN: &[u8] = b"clean";
/// Marks read at a time.
const MARKS_AT_ONCE: usize = 1024;

/// What was read back.
pub(crate) struct Recovered {
    pub(crate) document: Option<Arc<ClusterDocument>>,
    pub(crate) marks: BTreeMap<PartitionId, Mark>,
    pub(crate) seen: Vec<(NodeId, StoreId, Sequence)>,
    pub(crate) clean: Option<StartId>,
}

impl Recovered {
    /// Reads everything.
    pub(crate) fn read<S: Store>(store: &S) -> Recovered {
        let get = |key: &[u8]| {
            let stored = store.get(Table::Meta, key).ok().flatten()?;
            open_stored(key, &stored).ok()
        };
        let document =
            get(DOCUMENT).and_then(|payload| postcard::from_bytes::<ClusterDocument>(&payload).ok());
        let document = document.filter(|document| document.validate().is_ok()).map(Arc::new);
        let seen = get(SEEN).map(decode_seen).unwrap_or_default();
        let clean = get(CLEAN).filter(|payload| payload.len() == 8);
        let clean = clean.map(|mut payload| StartId(payload.get_u64()));
        Recovered { document, marks: read_marks(store), seen, clean }
    }

    /// Whether a copy was whole when the store was last written to, and nothing that it acknowledged from memory
    /// can have been lost since.
    pub(crate) fn was_whole(&self, partition: PartitionId, store: StoreId, gained: ring::Epoch) -> bool {
        self.marks.get(&partition).is_some_and(|mark| {
            let is_ours = mark.store == store && mark.gained == gained;
            mark.whole && is_ours && (mark.memory.is_none() || mark.memory == self.clean)
        })
    }
}

/// The marks of all copies.
fn read_marks<S: Store>(store: &S) -> BTreeMap<PartitionId, Mark> {
    let mut marks = BTreeMap::new();
    let end = [Mark::PREFIX, &[0xff; 3]].concat();
    let mut after = Bytes::from_static(Mark::PREFIX);
    while let Ok(found) = store.scan(Table::Meta, Some(&after), &end, MARKS_AT_ONCE) {
        let Some((last, _)) = found.last() else { break };
        after = last.clone();
        for (key, stored) in &found {
            let mark = open_stored(key, stored).ok().and_then(Mark::decode);
            if let (Some(partition), Some(mark)) = (Mark::partition(key), mark) {
                marks.insert(partition, mark);
            }
        }
    }
    marks
}

/// The document as it is stored.
pub(crate) fn document_to_store(document: &ClusterDocument) -> (Bytes, Bytes) {
    let payload = postcard::to_allocvec(document).expect("a document has nothing that cannot be encoded");
    let sealed = seal_stored(DOCUMENT, |out| out.put_slice(&payload), payload.len());
    (Bytes::from_static(DOCUMENT), sealed)
}

/// How far peers' stores were seen to come, as it is stored.
pub(crate) fn seen_to_store(seen: &[(NodeId, StoreId, Sequence)]) -> (Bytes, Bytes) {
    let encode = |out: &mut BytesMut| {
        for (node, store, sequence) in seen {
            out.put_u32(node.0);
            out.put_u64(store.0);
            out.put_u64(sequence.0);
        }
    };
    (Bytes::from_static(SEEN), seal_stored(SEEN, encode, seen.len() * SEEN_BYTES))
}

/// The mark of a stop in good order, as it is stored.
pub(crate) fn clean_to_store(start: StartId) -> (Bytes, Bytes) {
    (Bytes::from_static(CLEAN), seal_stored(CLEAN, |out| out.put_u64(start.0), 8))
}

/// Bytes of one peer's entry.
const SEEN_BYTES: usize = 20;

fn decode_seen(mut payload: Bytes) -> Vec<(NodeId, StoreId, Sequence)> {
    let mut seen = Vec::with_capacity(payload.len() / SEEN_BYTES);
    while payload.len() >= SEEN_BYTES {
        let (node, store) = (NodeId(payload.get_u32()), StoreId(payload.get_u64()));
        seen.push((node, store, Sequence(payload.get_u64())));
    }
    seen
}
