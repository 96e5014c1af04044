//! One mint: its place in line, its claim, the request, its Secrets, its outcome.

pub mod budget_scheduler;
pub mod execute;
pub mod mint_queue;
pub mod outage;
pub mod prepare;
pub mod publish;
