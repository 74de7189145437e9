//! Bugs planted on purpose, to prove that the simulator's checkers find them.
//!
//! Each names a delicate rule and switches it off. A planted bug is an argument of one constructor
//! ([`crate::Node::with_planted_bug`]); no configuration and no cargo feature can set it.

/// A delicate rule that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlantedBug {
    /// Durable acknowledgements do not wait for the sync.
    AcknowledgeBeforeSync,
    /// The actor of a partition is kept when one of its records was found lost.
    ActorKeptAfterLoss,
    /// The actors are kept when a batch failed.
    ActorKeptAfterFailedBatch,
    /// A filling copy answers reads as if it were whole.
    FillingCopyCounted,
    /// A blocking read answers without writing back.
    BlockingReadWithoutWriteBack,
    /// A last-write-wins version is dated by the raw wall clock alone.
    LwwByWallClock,
    /// A last-write-wins version may be lower than the one it replaces.
    LwwMintedBelow,
    /// A write that ran out of time after its version was minted is reported as refused.
    DefiniteErrorAfterMint,
    /// A replica that refused a merge counts as one that acknowledged it.
    FailedReplicaCounted,
    /// Acknowledgements from replicas beyond the first n count.
    CountedBeyondN,
    /// A context is taken without checking whose it is.
    ForeignContextAccepted,
    /// A vote about a document is sent before it is synced.
    VoteNotSynced,
    /// A member whose store, or memory of votes, is not the recorded one votes all the same, and is counted.
    WipedVoterVotes,
    /// A process votes before its peers have said whether its store went back in time.
    VoteBeforeWelcome,
    /// A majority of the founders is enough to form a cluster.
    FormedByMajority,
    /// A node whose clock is far from its peers' dates writes all the same.
    DriftIgnored,
    /// A hint is kept in memory alone.
    HintNotStored,
    /// A hint is forgotten as its record is sent.
    HintDroppedWhenSent,
    /// A hint that an acknowledgement counts on is dropped when it is old.
    CountedHintExpires,
    /// Nodes that stand in for replicas count for a request that did not ask for it.
    StandInCountedAsStrict,
    /// A replica that is down counts as one that acknowledged.
    DeadReplicaCounted,
    /// A write does not change the hash tree.
    LeafNotUpdated,
    /// Who follows in an exchange gives what it has and takes nothing.
    ExchangeOnlyPulls,
    /// An exchange passes over records that differ only in what they have seen.
    ContextOnlySkipped,
    /// A watermark is taken that all copies but one have promised.
    DroppedOnePromiseEarly,
    /// A promise is said before it is synced.
    PromiseNotSynced,
    /// A process begins to date writes without regard to what its store promised.
    MintBelowPromise,
    /// What comes in an exchange is taken whatever its sender knew.
    DelayedExchangeMergeTaken,
    /// A copy that cannot be believed keeps what a whole one knows to be dead.
    GhostKept,
    /// A context entry goes when the watermark has passed it, whatever else the record holds.
    ContextByOwnCounter,
    /// Of a record that is refused the context is joined all the same.
    BlockedEntryJoined,
    /// What a filling copy drops it keeps the context entry of.
    CutKeepsEntry,
    /// A write of an expired value counts on from nothing.
    ExpiredForgotten,
    /// A floor passes what this node owes and others count on.
    CountedHintsPassed,
    /// A copy that cannot be believed believes one that keeps a record only since more copies were asked for.
    LatecomerBelieved,
    /// An exchange counts though one of the two has lost something since it began.
    LossWhileExchanging,
}

impl PlantedBug {
    /// All of them.
    pub const ALL: [PlantedBug; 26] = [
        PlantedBug::AcknowledgeBeforeSync,
        PlantedBug::ActorKeptAfterLoss,
        PlantedBug::ActorKeptAfterFailedBatch,
        PlantedBug::FillingCopyCounted,
        PlantedBug::BlockingReadWithoutWriteBack,
        PlantedBug::LwwByWallClock,
        PlantedBug::LwwMintedBelow,
        PlantedBug::DefiniteErrorAfterMint,
        PlantedBug::FailedReplicaCounted,
        PlantedBug::CountedBeyondN,
        PlantedBug::ForeignContextAccepted,
        PlantedBug::VoteNotSynced,
        PlantedBug::WipedVoterVotes,
        PlantedBug::VoteBeforeWelcome,
        PlantedBug::FormedByMajority,
        PlantedBug::DriftIgnored,
        PlantedBug::HintNotStored,
        PlantedBug::HintDroppedWhenSent,
        PlantedBug::CountedHintExpires,
        PlantedBug::StandInCountedAsStrict,
        PlantedBug::DeadReplicaCounted,
        PlantedBug::LeafNotUpdated,
        PlantedBug::ExchangeOnlyPulls,
        PlantedBug::ContextOnlySkipped,
        PlantedBug::DroppedOnePromiseEarly,
        PlantedBug::ExpiredForgotten,
    ];

    /// Those that random histories show too rarely. Each has one of its own, written by hand.
    pub const SCRIPTED: [PlantedBug; 10] = [
        PlantedBug::PromiseNotSynced,
        PlantedBug::MintBelowPromise,
        PlantedBug::DelayedExchangeMergeTaken,
        PlantedBug::GhostKept,
        PlantedBug::ContextByOwnCounter,
        PlantedBug::BlockedEntryJoined,
        PlantedBug::CutKeepsEntry,
        PlantedBug::CountedHintsPassed,
        PlantedBug::LatecomerBelieved,
        PlantedBug::LossWhileExchanging,
    ];
}
