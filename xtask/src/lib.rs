//! xtask
pub mod lab;
pub mod load;
