//! Real processes on loopback: starting them, talking HTTP to them, listening to them, killing them by pid.

pub mod agent;
pub mod capture;
pub mod http;
pub mod process;
