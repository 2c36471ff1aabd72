pub mod ports;
pub mod status;
