//! `ring`: how the partitions are spread over the nodes.

use std::fmt::Write as _;

use ring::{Candidate, ClusterDocument, DatacenterId, NodeId, PartitionId, fair_shares};
use serde::Serialize;

use crate::{
    arguments::{Global, Ring},
    failure::{CommandError, Exit},
    output::{Output, Table},
    session::Session,
    status::ownership,
};

/// What `ring` prints.
#[derive(Serialize)]
struct RingDocument {
    epoch: u64,
    partitions: u32,
    datacenters: Vec<DatacenterDocument>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lists: Option<Vec<ListDocument>>,
}

#[derive(Serialize)]
struct DatacenterDocument {
    name: String,
    /// Copies that are counted: those of the keyspace.
    n: u8,
    /// How far the node that is furthest from its fair share is from it: 0.03 is 3 %.
    imbalance: f64,
    nodes: Vec<NodeDocument>,
}

#[derive(Serialize)]
struct NodeDocument {
    node: u32,
    rack: String,
    weight: u32,
    /// Partitions of which it is the first.
    first: usize,
    /// Partitions of which it is one of the first n.
    replicas: usize,
    /// The share of the partitions that makes.
    share: f64,
    /// The share that its weight and its rack allow it.
    fair_share: f64,
}

#[derive(Serialize)]
struct ListDocument {
    partition: u16,
    datacenter: String,
    nodes: Vec<u32>,
}

/// Shows the ring.
pub(crate) async fn run(ring: Ring, global: &Global, output: &Output) -> Result<Exit, CommandError> {
    let session = Session::open(global).await?;
    let document = session.client.document();
    let shown = describe(&document, session.keyspace_name(), ring.lists);
    session.close().await;
    output.print(&shown, |text| write(&shown, text))?;
    Ok(Exit::Done)
}

fn describe(document: &ClusterDocument, keyspace: &str, has_lists: bool) -> RingDocument {
    let keyspace = document.keyspace_named(keyspace).map(|(_, keyspace)| keyspace);
    let datacenters = (0..).zip(&document.datacenters).map(|(index, datacenter)| {
        let id = DatacenterId(index);
        let n = keyspace.map_or(3, |keyspace| keyspace.replication.get(&id).copied().unwrap_or(0));
        let nodes = nodes(document, id, n);
        let off = |node: &NodeDocument| (node.share / node.fair_share - 1.0).abs();
        let imbalance = if n == 0 { 0.0 } else { nodes.iter().map(off).fold(0.0, f64::max) };
        DatacenterDocument { name: datacenter.name.clone(), n, imbalance, nodes }
    });
    RingDocument {
        epoch: document.epoch.0,
        partitions: document.partitions.count(),
        datacenters: datacenters.collect(),
        lists: has_lists.then(|| lists(document)),
    }
}

fn nodes(document: &ClusterDocument, datacenter: DatacenterId, n: u8) -> Vec<NodeDocument> {
    let here = &document.datacenters[usize::from(datacenter.0)];
    let candidates = document.candidates(datacenter);
    let fair = fair_shares(&candidates, usize::from(n));
    let stands = |node: NodeId, n: usize| {
        let is_among =
            |id: &PartitionId| here.placement.replicas(*id, n).iter().any(|owner| owner.node == node);
        document.partitions.iter().filter(is_among).count()
    };
    let describe = |(candidate, fair_share): (&Candidate, f64)| NodeDocument {
        node: candidate.node.0,
        rack: here.racks.get(usize::from(candidate.rack.0)).cloned().unwrap_or_default(),
        weight: candidate.weight,
        first: stands(candidate.node, 1),
        replicas: stands(candidate.node, usize::from(n)),
        share: ownership(document, candidate.node, n),
        fair_share,
    };
    candidates.iter().zip(fair).map(describe).collect()
}

fn lists(document: &ClusterDocument) -> Vec<ListDocument> {
    let of_partition = |partition: PartitionId| {
        (0..).zip(&document.datacenters).map(move |(index, datacenter)| ListDocument {
            partition: partition.0,
            datacenter: datacenter.name.clone(),
            nodes: document
                .preference_list(DatacenterId(index), partition)
                .iter()
                .map(|owner| owner.node.0)
                .collect(),
        })
    };
    document.partitions.iter().flat_map(of_partition).collect()
}

fn write(ring: &RingDocument, text: &mut String) {
    let _ = writeln!(text, "{} partitions, epoch {}", ring.partitions, ring.epoch);
    for datacenter in &ring.datacenters {
        let (name, n, imbalance) = (&datacenter.name, datacenter.n, datacenter.imbalance * 100.0);
        let _ = writeln!(text, "\n{name}, n = {n}: within {imbalance:.1}% of the fair shares");
        let mut table = Table::new(&["node", "rack", "weight", "first of", "replica of", "share", "fair"]);
        for node in &datacenter.nodes {
            table.row([
                format!("node-{}", node.node),
                node.rack.clone(),
                node.weight.to_string(),
                node.first.to_string(),
                node.replicas.to_string(),
                format!("{:.1}%", node.share * 100.0),
                format!("{:.1}%", node.fair_share * 100.0),
            ]);
        }
        table.write(text);
    }
    if let Some(lists) = &ring.lists {
        let _ = writeln!(text);
        for list in lists {
            let nodes: Vec<_> = list.nodes.iter().map(|node| format!("node-{node}")).collect();
            let _ = writeln!(text, "partition-{} {}: {}", list.partition, list.datacenter, nodes.join(" "));
        }
    }
}
