pub mod admin;
pub mod client_hello;
pub mod listeners;
pub mod signals;
