//! The rules that can be broken, each to see that its absence is found.

/// A planted mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// A watermark is adopted when all copies but one have promised it.
    DroppedOnePromiseEarly,
    /// A member that is silent is not waited for.
    AwayNotWaitedFor,
    /// A promise is said before it is synced.
    PromiseNotSynced,
    /// An exchange counts up to the node's own floor, whatever the others may still mint.
    SinglePhase,
    /// An exchange counts up to the floors of its two nodes, whatever third nodes may still mint.
    ThirdFloorsIgnored,
    /// A process does not begin above the floor of the one before it.
    MintBelowFloor,
    /// A process mints before anyone has told it the floor that its store may have forgotten.
    MintUngreeted,
    /// A node that becomes a copy mints before anyone has told it a floor since.
    GainUngreeted,
    /// A floor passes writes that are still under way.
    FloorPassesWrites,
    /// Merges of exchanges are taken whatever they know.
    DelayedExchangeTaken,
    /// All merges are taken whatever they know.
    AllTaken,
    /// A blocked merge is acknowledged.
    BlockedAcknowledged,
    /// A filling copy speaks like one that is whole.
    FillingBelieved,
    /// A repair claims to know as much as the best of the copies that it joins.
    RepairClaimsMost,
    /// A filling copy keeps what a whole one knows to be dead.
    GhostKept,
    /// What is dead goes, and its context entry stays.
    CutKeepsEntry,
    /// A blocked value does not come in, and its context entry does.
    BlockedEntryJoined,
    /// Of a refused record the actors are taken of which it names nothing unknown.
    BlockedInPart,
    /// Only values are asked after that are not known, not context entries.
    UnknownEntriesTaken,
    /// A copy that becomes whole keeps hints from below the watermark.
    OldHintsKept,
    /// Context entries go by their own counter.
    ContextByOwnCounter,
    /// Values go when the node's own clock says that they are expired.
    ExpiredByOwnClock,
    /// A write counts on from what is left when expired values are left out.
    ExpiredForgottenAtMint,
    /// Promises and exchanges count under another document than their own.
    PromiseOverChange,
    /// A copy that comes to keep more keys stays whole.
    RisingCopyWhole,
    /// An exchange is complete before what it brought is synced.
    ExchangeBeforeSync,
    /// A floor passes hints that others count on.
    HintsIgnored,
    /// A node that stands in for a replica takes records up to its promise.
    StandInBelowPromise,
    /// A write that was over when an exchange began is taken all the same.
    LateTaken,
    /// A copy becomes whole by exchanges that began at a lower watermark.
    FilledBelowWatermark,
    /// A copy takes the union as soon as it has met no whole copy.
    UnionAtOnce,
    /// A copy that met a watermark above its promise goes on as whole.
    BackwardsUnnoticed,
    /// A filling copy believes a whole one that keeps a record only since more copies were asked for.
    LatecomerBelieved,
    /// Whether a record is taken in a union is asked of all that keep it now.
    UnionByMost,
    /// A copy strips contexts of what it does not know, whether or not it keeps every record.
    LatecomerStrips,
    /// What a node owes from before its disk went back it hands over as if it knew it to be alive.
    OwedFromPastVouched,
    /// The floor of a node whose disk went back, or is another, stays what it was.
    FallenFloorIgnored,
    /// A node that becomes a copy mints by its own clock, below what the others have promised.
    MintBelowWatermark,
    /// Of a record that the other side of an exchange does not keep, nothing is said as if nothing were held.
    NothingSaidOfLess,
    /// A copy speaks for what it has not kept since its first write, and does not listen to those that have.
    LatecomerSpeaks,
    /// What is owed to a node that cannot tell what of it is dead is owed to it for ever.
    HintStaysWithLatecomer,
    /// What is left of a record is put though this node keeps only what was cut away.
    UnkeptRestPut,
    /// An exchange counts though one of the two has lost something since it began.
    LossWhileExchanging,
}

impl Mistake {
    pub(crate) const ALL: [Mistake; 43] = [
        Mistake::DroppedOnePromiseEarly,
        Mistake::AwayNotWaitedFor,
        Mistake::PromiseNotSynced,
        Mistake::SinglePhase,
        Mistake::ThirdFloorsIgnored,
        Mistake::MintBelowFloor,
        Mistake::MintUngreeted,
        Mistake::GainUngreeted,
        Mistake::FloorPassesWrites,
        Mistake::DelayedExchangeTaken,
        Mistake::AllTaken,
        Mistake::BlockedAcknowledged,
        Mistake::FillingBelieved,
        Mistake::RepairClaimsMost,
        Mistake::GhostKept,
        Mistake::CutKeepsEntry,
        Mistake::BlockedEntryJoined,
        Mistake::BlockedInPart,
        Mistake::UnknownEntriesTaken,
        Mistake::OldHintsKept,
        Mistake::ContextByOwnCounter,
        Mistake::ExpiredByOwnClock,
        Mistake::ExpiredForgottenAtMint,
        Mistake::PromiseOverChange,
        Mistake::RisingCopyWhole,
        Mistake::ExchangeBeforeSync,
        Mistake::HintsIgnored,
        Mistake::StandInBelowPromise,
        Mistake::LateTaken,
        Mistake::FilledBelowWatermark,
        Mistake::UnionAtOnce,
        Mistake::BackwardsUnnoticed,
        Mistake::LatecomerBelieved,
        Mistake::UnionByMost,
        Mistake::LatecomerStrips,
        Mistake::OwedFromPastVouched,
        Mistake::FallenFloorIgnored,
        Mistake::MintBelowWatermark,
        Mistake::NothingSaidOfLess,
        Mistake::LatecomerSpeaks,
        Mistake::HintStaysWithLatecomer,
        Mistake::UnkeptRestPut,
        Mistake::LossWhileExchanging,
    ];

    /// Those that need requests for several numbers of copies.
    pub(crate) const OF_LATECOMERS: [Mistake; 7] = [
        Mistake::LatecomerBelieved,
        Mistake::UnionByMost,
        Mistake::LatecomerStrips,
        Mistake::NothingSaidOfLess,
        Mistake::LatecomerSpeaks,
        Mistake::HintStaysWithLatecomer,
        Mistake::UnkeptRestPut,
    ];

    /// Mistakes that one history in some hundred thousand shows, and the first that does: with a mistake its history is replayed.
    pub(crate) const RARE: [(Mistake, u64); 7] = [
        (Mistake::LateTaken, 126_090),
        (Mistake::OwedFromPastVouched, 60_054),
        (Mistake::FallenFloorIgnored, 91_262),
        (Mistake::SinglePhase, 50_858),
        (Mistake::RisingCopyWhole, 51_418),
        (Mistake::LossWhileExchanging, 446_562),
        (Mistake::GainUngreeted, 628_214),
    ];

    /// Mistakes that no history of some ten thousand has shown: others of the rules stand behind them. Each wants a history
    /// written by hand; the first three have one.
    pub(crate) const UNSEEN: [Mistake; 15] = [
        Mistake::NothingSaidOfLess,
        Mistake::LatecomerSpeaks,
        Mistake::HintStaysWithLatecomer,
        Mistake::UnkeptRestPut,
        Mistake::LatecomerBelieved,
        Mistake::RepairClaimsMost,
        Mistake::CutKeepsEntry,
        Mistake::OldHintsKept,
        Mistake::PromiseOverChange,
        Mistake::ExchangeBeforeSync,
        Mistake::StandInBelowPromise,
        Mistake::FilledBelowWatermark,
        Mistake::UnionAtOnce,
        Mistake::BackwardsUnnoticed,
        Mistake::ThirdFloorsIgnored,
    ];
}
