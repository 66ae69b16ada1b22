//! Turns the tables of a networkdb node into the kernel's data path, and keeps the kernel true to them.
//!
//! Docker reacts to each event with a system call and never looks back. Here the data path is a function: what the tables
//! ask for ([`desired`]) minus what the kernel holds ([`kernel`]) is a [`plan`], applied in batches, computed again after
//! each change and checked again and again. What is already right is never rewritten, so a restart loses no packet; what
//! somebody else made is never touched.

pub mod desired;
pub mod driver;
pub mod guard;
pub mod kernel;
pub mod mac;
pub mod network;
pub mod plan;
pub mod probe;
pub mod reconcile;
pub mod record;
pub mod service;

pub use driver::DataPath;
pub use mac::Mac;
pub use network::NetworkConfig;
pub use reconcile::{Settings, Timing};
pub use record::PeerRecord;
