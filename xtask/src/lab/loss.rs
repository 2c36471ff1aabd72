//! Random packet loss by a BPF classifier, since not every kernel has netem.

use anyhow::{Context as _, anyhow};
use aya::programs::SchedClassifier;
use aya::programs::tc::{TcAttachType, qdisc_add_clsact};
use aya::{Ebpf, EbpfLoader};

use super::Namespace;
use crate::workspace;

/// Where packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// On what a place receives, as a network loses them: the sender learns it from missing acknowledgements.
    OnTheWay,
    /// On what a place sends, as a full queue of its own does: its TCP is told at once and counts some bytes twice.
    AtTheSender,
}

impl Where {
    fn attach_type(self) -> TcAttachType {
        match self {
            Self::OnTheWay => TcAttachType::Ingress,
            Self::AtTheSender => TcAttachType::Egress,
        }
    }
}

/// Packets are lost while this lives.
#[derive(Debug)]
pub struct Loss {
    namespace: Namespace,
    loaded: Option<Ebpf>,
}

impl Loss {
    pub(super) fn start(namespace: &Namespace, interfaces: &[&str], at: Where, per_mille: u32) -> anyhow::Result<Self> {
        let path = workspace::testkit_object();
        let object = std::fs::read(&path)
            .with_context(|| format!("{} cannot be read: build it with `cargo xtask build-ebpf`", path.display()))?;
        let mut loaded = EbpfLoader::new().override_global("DROP_PER_MILLE", &per_mille, true).load(&object)?;
        namespace.run(|| attach(&mut loaded, interfaces, at))?;
        Ok(Self { namespace: namespace.clone(), loaded: Some(loaded) })
    }
}

fn attach(loaded: &mut Ebpf, interfaces: &[&str], at: Where) -> anyhow::Result<()> {
    let program =
        loaded.program_mut("drop_random").ok_or_else(|| anyhow!("the testkit object has no program drop_random"))?;
    let classifier: &mut SchedClassifier = program.try_into()?;
    classifier.load()?;
    for interface in interfaces {
        // Needed before Linux 6.6 only; later ones attach without a queueing discipline.
        let _ = qdisc_add_clsact(interface);
        classifier.attach(interface, at.attach_type()).with_context(|| format!("attach to {interface}"))?;
    }
    Ok(())
}

impl Drop for Loss {
    fn drop(&mut self) {
        // Detaching by netlink (before Linux 6.6) must happen inside the namespace.
        let loaded = self.loaded.take();
        self.namespace.run(|| drop(loaded));
    }
}
