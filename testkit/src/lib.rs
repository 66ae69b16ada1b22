//! What the project tests itself with.
//!
//! * [`sim`] runs many engines in one thread over a virtual network and clock; the same seed gives the same run.
//! * [`fuzz`] is what the fuzz targets run.
//! * [`e2e`] starts the real `networkdb` program and talks to it over loopback.

pub mod e2e;
pub mod fuzz;
pub mod sim;
