//! Real processes on loopback: starting them, talking HTTP to them, listening to them, killing them by pid. And a browser.

pub mod agent;
pub mod browser;
pub mod capture;
pub mod http;
pub mod process;
