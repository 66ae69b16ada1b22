//! What the project tests itself with.
//!
//! * [`sim`] runs many engines in one thread over a virtual network and clock; the same seed gives the same run.
//! * [`fuzz`] is what the fuzz targets run.
//! * [`op`] is what can be done to such a cluster, [`model`] what should come of it, [`check`] whether it does.
//! * [`e2e`] starts the real `networkdb` program and talks to it over loopback.
//! * [`ledger`] keeps what hosts have acknowledged and judges whether a cluster at rest still holds it.
//! * [`service`] is what the test service `networkdb-test` answers beyond a diagnostic server.
//! * [`hosts`] makes a machine look like many, joined by a network that can be broken.
//! * [`scenario`] writes to clusters of such hosts while things go wrong, [`soak`] does so for hours.
//! * [`balancing`] tries what balancing promises, with real connections.
//! * [`vm`] runs a program in a virtual machine, for what the kernel of this machine lacks.
//! * [`mod@bench`] measures what the project promises.

pub mod balancing;
pub mod bench;
pub mod check;
pub mod e2e;
pub mod fuzz;
pub mod hosts;
pub mod ledger;
pub mod model;
pub mod op;
pub mod overlay;
pub mod scenario;
pub mod service;
pub mod sim;
pub mod soak;
pub mod vm;
