//! Everything that a node needs of the world: disks, sockets, clocks and threads. The only part of the crate that may
//! touch them; it decides nothing about data.
