//! Load for whole paths: an open-loop driver that counts every failure, CPU time per process, and a trivially fast
//! inference server, so that what is measured is the way to the server.
pub mod cpu;
pub mod driver;
mod echo;
pub mod fake;
pub mod ledger;
