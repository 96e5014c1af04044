//! What is known: what the watches tell, what is worked on, who is where. Each piece has one owner and one lock.

pub mod caches;
pub mod changes;
pub mod connections;
pub mod context;
pub mod credential_index;
pub mod credentials;
pub mod parts;
pub mod pods;
pub mod pods_told;
pub mod poll;
pub mod secret_index;
pub mod shared;
pub mod watches;
pub mod work_queue;
