//! A control plane and both simulators to play with, until standard input ends or Ctrl-C.

use std::io::{Read, Write};

use testbed::{ChittyConnect, Chronicle, ControlPlane, Options, Tool};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let control_plane = runtime.block_on(ControlPlane::start(Options::default()))?;
    let chittyconnect = ChittyConnect::start()?;
    let chronicle = Chronicle::start()?;
    let pids: Vec<_> = [Tool::Etcd, Tool::KubeApiserver, Tool::KubeControllerManager]
        .into_iter()
        .filter_map(|tool| control_plane.pid(tool))
        .map(|pid| pid.to_string())
        .collect();
    let mut out = std::io::stdout();
    writeln!(out, "KUBECONFIG={}", control_plane.kubeconfig().display())?;
    writeln!(out, "CHITTYCONNECT_URL={}", chittyconnect.url())?;
    writeln!(out, "CHITTYCONNECT_API_KEY={}", chittyconnect.api_key())?;
    writeln!(out, "CHITTY_CHRONICLE_URL={}", chronicle.url())?;
    writeln!(out, "CHITTY_CHRONICLE_TOKEN={}", chronicle.token())?;
    writeln!(out, "PIDS={}", pids.join(","))?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
