//! pgkiln's builder: `image.toml -> Image -> Lock -> fetch -> unpack -> configure -> assemble -> outputs + manifest`.

pub mod advisory;
pub mod apt;
pub mod assemble;
pub mod bake;
pub mod cache;
pub mod cli;
pub mod cluster;
pub mod configure;
pub mod demo;
pub mod diff;
pub mod digest;
pub mod doctor;
pub mod fetch;
pub mod image;
pub mod lab;
pub mod lint;
pub mod lock;
pub mod manifest;
pub mod problem;
pub mod progress;
pub mod sandbox;
pub mod store;
pub mod strict;
pub mod tool;
pub mod unpack;
