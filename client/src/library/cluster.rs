//! The cluster as a client sees it: whom it can ask, by which document, and how both are kept current.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ring::{ClusterDocument, Epoch, NodeId};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, warn};

use super::{
    attempts::Kind,
    connection::{Answer, Connection, Heard, Question},
    dialer::Dialer,
    failure::{ConnectError, ControlFailure, DialError, Unreachable, Unreached},
    nodes::{Node, Nodes},
    race::race,
    random::Random,
    routing::Chooser,
    topology::{Rumours, Topology, View},
};
use crate::{
    Access,
    library::ClientConfig,
    tls::{Material, TlsError},
    wire::{ControlError, ControlReply, ControlRequest},
};

/// One seed has this long before the next is asked too.
const SEED_HEAD_START: Duration = Duration::from_millis(250);
/// How long one node may take to give its document before another is asked.
const DOCUMENT_WAIT: Duration = Duration::from_millis(500);
/// How long all of them may take.
const REFRESH_WAIT: Duration = Duration::from_secs(3);
/// How long one node may take over a question that any node can answer before another is asked.
pub(crate) const CONTROL_SLICE: Duration = Duration::from_secs(1);
/// The wait before a document that could not be fetched is asked for again; it doubles.
const REFETCH_FIRST: Duration = Duration::from_millis(100);
/// How often a document that was heard of is asked for before the rumour is forgotten. The next reply renews it.
const REFETCHES_MAX: u32 = 6;

/// What all clones of a client share.
pub(crate) struct Cluster {
    config: ClientConfig,
    access: Access,
    dialer: Arc<Dialer>,
    pub(crate) nodes: Nodes,
    topology: Topology,
    rumours: Arc<Rumours>,
    pub(crate) random: Random,
    /// The highest version counter that was seen in last-write-wins keyspaces.
    seen: AtomicU64,
    /// When the fetch that was completed last began. Held by whoever fetches.
    fetched: Mutex<Option<Instant>>,
}

impl Cluster {
    /// Connects through the first seed that answers.
    pub(crate) async fn connect(config: ClientConfig) -> Result<Arc<Cluster>, ConnectError> {
        if config.seeds.is_empty() {
            return Err(ConnectError::NoSeeds);
        }
        let rumours = Arc::new(Rumours::default());
        let unusable = |error| ConnectError::Material(Arc::new(error));
        let material = load_material(&config).map_err(unusable)?;
        let dialer = Arc::new(Dialer::new(&material, rumours.clone()).map_err(unusable)?);
        let deadline = Instant::now() + config.connect_timeout;
        let (connection, document) =
            ask_seeds(&dialer, &config.seeds, deadline).await.map_err(ConnectError::Unreachable)?;
        if let Some(name) = &config.datacenter
            && !document.datacenters.iter().any(|datacenter| datacenter.name == *name)
        {
            let known = document.datacenters.into_iter().map(|datacenter| datacenter.name).collect();
            return Err(ConnectError::NoSuchDatacenter { name: name.clone(), known });
        }
        let nodes = Nodes::new(dialer.clone());
        nodes.adopt(&document);
        let access = connection.access();
        nodes.add_connection(Arc::new(connection));
        let cluster = Arc::new(Cluster {
            access,
            dialer,
            nodes,
            topology: Topology::new(document, config.datacenter.clone()),
            rumours: rumours.clone(),
            random: Random::new(),
            seen: AtomicU64::new(0),
            fetched: Mutex::new(None),
            config,
        });
        tokio::spawn(follow(Arc::downgrade(&cluster), rumours));
        Ok(cluster)
    }

    /// Reads the certificates anew, for the connections from now on.
    pub(crate) fn renew_certificates(&self) -> Result<(), TlsError> {
        self.dialer.renew(&load_material(&self.config)?)
    }

    /// What it was made from.
    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// What the client's certificate allows, as the seed said.
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// The present document.
    pub(crate) fn view(&self) -> Arc<View> {
        self.topology.view()
    }

    /// The highest version counter that was seen in last-write-wins keyspaces.
    pub(crate) fn seen(&self) -> Option<u64> {
        Some(self.seen.load(Ordering::Relaxed)).filter(|seen| *seen > 0)
    }

    /// A version of a last-write-wins keyspace was seen.
    pub(crate) fn saw(&self, counter: u64) {
        self.seen.fetch_max(counter, Ordering::Relaxed);
    }

    /// The document as some node has it now. Many callers at once make one fetch. Where nobody answers, the view
    /// stays what it was.
    pub(crate) async fn refresh(&self, deadline: Instant) -> Arc<View> {
        let asked = Instant::now();
        let deadline = deadline.min(asked + REFRESH_WAIT);
        // Not fetched within the time: the view is what it is.
        let _ = timeout_at(deadline, async {
            let mut fetched = self.fetched.lock().await;
            if fetched.is_none_or(|began| began < asked) {
                let began = Instant::now();
                if self.fetch(deadline).await {
                    *fetched = Some(began);
                }
            }
        })
        .await;
        self.view()
    }

    /// Fetches the newest document that any node spoke of, unless somebody has meanwhile.
    async fn catch_up(&self) {
        let deadline = Instant::now() + REFRESH_WAIT;
        let began = Instant::now();
        let mut fetched = self.fetched.lock().await;
        if self.is_behind() && self.fetch(deadline).await {
            *fetched = Some(began);
        }
    }

    /// Whether a node spoke of a newer document.
    fn is_behind(&self) -> bool {
        self.rumours.newer_than(self.view().document.epoch).is_some()
    }

    /// Asks `node`, and nobody else.
    pub(crate) async fn ask(
        &self,
        node: &Arc<Node>,
        request: ControlRequest,
        deadline: Instant,
    ) -> Result<ControlReply, ControlFailure> {
        let unreachable = |unreached| ControlFailure::Unreachable(Unreachable { tried: vec![unreached] });
        let connection = self.nodes.connection(node, deadline).await.map_err(unreachable)?;
        let answered = ask_on(&connection, request, deadline).await;
        if !matches!(answered, Ok(_) | Err(ControlFailure::Refused(_))) {
            node.failed();
        }
        answered
    }

    /// Asks any node, and another if it cannot say. Returns who answered, too.
    pub(crate) async fn ask_any(
        &self,
        request: ControlRequest,
        slice: Duration,
        deadline: Instant,
    ) -> Result<(NodeId, ControlReply), ControlFailure> {
        let mut tried = Vec::new();
        let mut failure = ControlFailure::Unreachable(Unreachable::default());
        loop {
            let now = Instant::now();
            let (nodes, view, random) = (&self.nodes, self.view(), &self.random);
            let chooser = Chooser { nodes, view: &view, tried: &tried, random, kind: Kind::Read, now };
            let Some(node) = chooser.choose_any().filter(|_| now < deadline) else { break };
            tried.push(node.id());
            let until = deadline.min(now + slice);
            let next = match self.ask(&node, request.clone(), until).await {
                Ok(reply) => return Ok((node.id(), reply)),
                Err(next) => next,
            };
            failure = match (failure, next) {
                // Of nodes that could not be reached, all are named.
                (ControlFailure::Unreachable(mut all), ControlFailure::Unreachable(one)) => {
                    all.tried.extend(one.tried);
                    ControlFailure::Unreachable(all)
                }
                (_, ControlFailure::Refused(error)) if !is_passing(&error) => return Err(error.into()),
                // What is doubtful stays so, and what a node said is more than that another is down.
                (known, ControlFailure::Unreachable(_)) => known,
                (known, _) if known.is_in_doubt() => known,
                (_, next) => next,
            };
        }
        Err(failure)
    }

    /// Closes all connections, and waits a moment so that the nodes hear of it.
    pub(crate) async fn close(&self) {
        self.nodes.close();
        self.dialer.close().await;
    }

    /// Takes a document, if it is a newer one.
    fn adopt(&self, document: ClusterDocument) {
        if let Some(view) = self.topology.adopt(document) {
            self.nodes.adopt(&view.document);
        }
    }

    /// Fetches the document: from whoever spoke of the newest, from those that are connected, from all others, and
    /// at last from the seeds. True if anybody had one.
    async fn fetch(&self, deadline: Instant) -> bool {
        let view = self.view();
        let rumour = self.rumours.newer_than(view.document.epoch);
        let wanted = rumour.map_or(Epoch(0), |(epoch, _)| epoch);
        let source = rumour.map(|(_, node)| node);
        let mut nodes = self.nodes.all();
        nodes.sort_by_key(|node| (Some(node.id()) != source, !node.is_connected()));
        let mut has_any = false;
        for node in nodes {
            let until = deadline.min(Instant::now() + DOCUMENT_WAIT);
            match self.ask(&node, ControlRequest::Document, until).await {
                Ok(ControlReply::Document(document)) if document.validate().is_ok() => {
                    has_any = true;
                    self.adopt(*document);
                    if self.view().document.epoch >= wanted {
                        return true;
                    }
                }
                Ok(_) => warn!(node = %node.id(), "a node gave a document that is not valid"),
                Err(cause) => debug!(node = %node.id(), %cause, "no document"),
            }
        }
        if !has_any
            && let Ok((connection, document)) = ask_seeds(&self.dialer, &self.config.seeds, deadline).await
            && document.cluster == view.document.cluster
        {
            self.adopt(document);
            self.nodes.add_connection(Arc::new(connection));
            has_any = true;
        }
        has_any
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.rumours.wake();
    }
}

/// Fetches each newer document that a node mentions, until the client is dropped.
async fn follow(cluster: Weak<Cluster>, rumours: Arc<Rumours>) {
    loop {
        rumours.changed().await;
        let mut wait = REFETCH_FIRST;
        for attempt in 1.. {
            let Some(cluster) = cluster.upgrade() else { return };
            cluster.catch_up().await;
            if !cluster.is_behind() {
                break;
            }
            if attempt == REFETCHES_MAX {
                rumours.forget();
                break;
            }
            drop(cluster);
            sleep(wait).await;
            wait *= 2;
        }
    }
}

/// Races the seeds for a connection and a document.
async fn ask_seeds(
    dialer: &Arc<Dialer>,
    seeds: &[String],
    deadline: Instant,
) -> Result<(Connection, ClusterDocument), Unreachable> {
    let attempts = seeds.iter().cloned().map(|seed| {
        let dialer = dialer.clone();
        async move {
            let asked = timeout_at(deadline, ask_seed(&dialer, &seed, deadline)).await;
            asked.unwrap_or(Err(DialError::Silent))
        }
    });
    race(attempts.collect(), SEED_HEAD_START).await.map_err(|failed| {
        let unreached = |(index, cause): (usize, _)| Unreached { address: seeds[index].clone(), cause };
        Unreachable { tried: failed.into_iter().map(unreached).collect() }
    })
}

fn load_material(config: &ClientConfig) -> Result<Material, TlsError> {
    Material::load(&config.ca, &config.certificate, &config.key)
}

async fn ask_seed(
    dialer: &Arc<Dialer>,
    seed: &str,
    deadline: Instant,
) -> Result<(Connection, ClusterDocument), DialError> {
    let (_, connection) = dialer.dial(seed).await?;
    match ask_on(&connection, ControlRequest::Document, deadline).await {
        Ok(ControlReply::Document(document)) if document.validate().is_ok() => Ok((connection, *document)),
        Ok(_) => Err(DialError::InvalidDocument),
        Err(ControlFailure::Refused(error)) => Err(DialError::NoDocument(error)),
        Err(ControlFailure::Unreachable(mut unreachable)) => {
            Err(unreachable.tried.pop().map_or(DialError::Silent, |unreached| unreached.cause))
        }
        Err(ControlFailure::Silent { .. } | ControlFailure::NoSuchNode(_)) => Err(DialError::Silent),
        Err(ControlFailure::ConnectionLost { .. }) => Err(DialError::StreamEnded),
        Err(ControlFailure::WrongKind { .. }) => Err(DialError::InvalidDocument),
    }
}

/// Whether another node, or the same one later, may answer otherwise.
fn is_passing(error: &ControlError) -> bool {
    match error {
        ControlError::NotReady | ControlError::Overloaded | ControlError::Unsupported => true,
        ControlError::Forbidden { .. }
        | ControlError::OtherKeyspaces
        | ControlError::UnknownKeyspace
        | ControlError::NotOwner
        | ControlError::StorageFailed
        | ControlError::KeyspaceExists
        | ControlError::Invalid(_)
        | ControlError::InDoubt
        | ControlError::NotEverywhere { .. } => false,
    }
}

/// Asks on a connection.
async fn ask_on(
    connection: &Connection,
    request: ControlRequest,
    deadline: Instant,
) -> Result<ControlReply, ControlFailure> {
    let node = connection.node();
    let unsent = |cause| {
        let unreached = Unreached { address: node.to_string(), cause };
        ControlFailure::Unreachable(Unreachable { tried: vec![unreached] })
    };
    let pending = match timeout_at(deadline, connection.begin(|| Question::Control(request))).await {
        Ok(begun) => begun.map_err(unsent)?,
        Err(_) => return Err(unsent(DialError::QueueFull)),
    };
    match timeout_at(deadline, pending).await {
        Ok(Heard::Answer(_, Answer::Control(reply))) => Ok(reply?),
        Ok(Heard::Answer(_, Answer::Data(_))) => Err(ControlFailure::WrongKind { node }),
        Ok(Heard::Lost) => Err(ControlFailure::ConnectionLost { node }),
        Ok(Heard::Unsent) => Err(unsent(DialError::StreamEnded)),
        Err(_) => Err(ControlFailure::Silent { node }),
    }
}

/// The member of that id.
pub(crate) fn member(cluster: &Cluster, id: NodeId) -> Result<Arc<Node>, ControlFailure> {
    cluster.nodes.get(id).ok_or(ControlFailure::NoSuchNode(id))
}
