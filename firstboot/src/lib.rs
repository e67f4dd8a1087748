//! The first-boot agent: `datasource -> NodeSpec; (NodeSpec, Facts, State) -> Plan -> apply steps -> register -> watch`.

pub mod apply;
pub mod backup;
pub mod birth;
pub mod cli;
pub mod datasource;
pub mod durable;
pub mod etcd;
pub mod facts;
#[cfg(test)]
mod fixtures;
pub mod handover;
pub mod image_info;
pub mod layout;
pub mod member;
pub mod notify;
pub mod patroni;
pub mod pki;
pub mod plan;
pub mod problem;
pub mod profile;
pub mod register;
pub mod render;
pub mod retry;
pub mod run;
pub mod server;
pub mod spec;
pub mod sql;
pub mod state;
pub mod status;
pub mod step;
pub mod stored;
pub mod tool;
pub mod tune;
pub mod user_data;
pub mod verdict;
pub mod vip;
pub mod watch;
