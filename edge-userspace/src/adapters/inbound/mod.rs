pub mod admin;
pub mod listeners;
pub mod signals;
