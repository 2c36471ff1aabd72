pub mod admin;
pub mod signals;
