package ct

import (
	"context"

	"golang.org/x/sys/unix"

	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/judge"
)

// Flows implements dataplane.Flows. It remembers, between passes, what was served and what was cut. It is not safe for
// concurrent use.
type Flows struct {
	table    *Table
	services services
	policy   policy
}

var _ dataplane.Flows = (*Flows)(nil)

// New returns the flows of a table. The caller closes the table.
func New(t *Table) *Flows { return &Flows{table: t, policy: policy{judge: judge.New()}} }

// Reconcile implements dataplane.Flows. It must be called after the rules are in the kernel. On an error some flows may
// have been ended, and the caller tries again.
func (f *Flows) Reconcile(ctx context.Context, t dataplane.Tables, what dataplane.Concern) (int, error) {
	if what == (dataplane.Concern{}) {
		return 0, nil
	}
	if what.Services {
		f.services.load(t)
		if f.services.idle() && !what.Policy {
			return 0, nil
		}
	}
	if what.Policy {
		own, err := f.table.Addresses()
		if err != nil {
			return 0, err
		}
		f.policy.load(t, own)
	}
	ended, again := 0, true
	for round := 0; again && round < rounds; round++ {
		if what.Policy {
			settle()
		}
		n, err := f.end(ctx, what)
		ended += n
		if err != nil {
			return ended, err
		}
		again = what.Policy && f.policy.listed()
	}
	if what.Services {
		f.services.passed()
	}
	if what.Policy {
		f.policy.passed()
	}
	return ended, nil
}

// rounds bounds how often a pass looks for answers to what it cut: at once, since answers take less than a round.
const rounds = 4

// end lists all flows once, and ends those that are over.
func (f *Flows) end(ctx context.Context, what dataplane.Concern) (int, error) {
	var over []Entry
	err := f.table.Each(ctx, func(e *Entry) {
		if e.Zone != 0 {
			return // another software's: we use no zones
		}
		if what.Services && f.services.ends(e) || what.Policy && f.policy.ends(e) {
			over = append(over, e.keep())
		}
	})
	if err != nil {
		return 0, err
	}
	return f.table.Delete(ctx, over)
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1

// settle waits until no packet is on its way that met the rules as they were. A packet crosses all hooks in one RCU
// read-side section, and membarrier waits for those (membarrier(2): synchronize_rcu since 4.3): what it let pass is an
// entry afterwards, so the list that follows has it. That takes about 10 ms, so only policy waits: an entry to an
// endpoint that is gone is found by the next pass. Where the call is not there (nohz_full, a seccomp filter) the next pass
// finds the others too.
func settle() { _, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0) }
