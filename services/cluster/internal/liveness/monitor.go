package liveness

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/silence"
)

// Reasons of the Ready condition.
const (
	ReasonReady    = "AgentReady"
	ReasonNotReady = "NodeNotReady"
	ReasonDead     = "NodeDead"
)

// ConditionReady is the type of the condition.
const ConditionReady = "Ready"

// unknown is the status of a dead node's condition, as Kubernetes' node lifecycle controller spells it.
const unknown = "Unknown"

// messageEvery bounds how often a condition is written of which only the message changed.
const messageEvery = 5 * time.Second

// Asker runs a question in the goroutine that owns the World; *feed.Feed is one.
type Asker interface {
	Do(ctx context.Context, fn func(at store.Revision)) error
}

// Nodes gives the Nodes of the World, inside of Asker.Do.
type Nodes interface{ Nodes() []store.Record }

// Leader knows whether this replica does the judging; *feed.Leader is one.
type Leader interface{ Leadership() *store.Leadership }

// Monitor judges and writes. Beat may be called from anywhere; Run and Record each belong to one goroutine.
type Monitor struct {
	Store  *store.Store
	Asker  Asker
	Nodes  Nodes
	Leader Leader
	Log    *slog.Logger
	// Now is the clock.
	Now func() time.Time

	ledger *Ledger
	deaths *deaths
	epoch  store.Revision // of Record's goroutine
}

// NewMonitor completes a Monitor; it starts nothing.
func NewMonitor(m Monitor) *Monitor {
	m.ledger, m.deaths = NewLedger(), &deaths{}
	return &m
}

// Beat enters a heartbeat. false: this replica does not lead, and the node has to turn to the one that does.
func (m *Monitor) Beat(b Beat) bool {
	if m.Leader.Leadership() == nil {
		return false
	}
	m.ledger.Beat(b, m.Now())
	return true
}

// Dead says whether the World may still call the node dead, although it was heard meanwhile.
func (m *Monitor) Dead(node string) bool { return m.deaths.has(node) }

// Watch ticks until ctx ends. It does nothing else, so that a late tick means a starved process, and no slow write.
func (m *Monitor) Watch(ctx context.Context) error {
	return silence.EveryTick(ctx, nil, func() {
		if m.ledger.Tick(m.Now()) {
			m.Log.Warn("this process stood still: every node gets a fresh period before it is judged")
		}
	})
}

// Run records what is judged until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	return silence.EveryTick(ctx, nil, func() {
		if err := m.Record(ctx); err != nil && ctx.Err() == nil {
			m.Log.Warn("readiness of nodes is not recorded, trying again", "error", err)
		}
	})
}

// Record judges all nodes now and writes what differs from the store. A Node that changed meanwhile is left for the next
// time.
func (m *Monitor) Record(ctx context.Context) error {
	lead := m.Leader.Leadership()
	if lead == nil {
		m.epoch = 0
		return nil
	}
	if lead.Epoch != m.epoch {
		m.epoch = lead.Epoch
		m.ledger.Restart(m.Now())
		m.deaths.forget()
	}
	var nodes []store.Record
	var at store.Revision
	if err := m.Asker.Do(ctx, func(now store.Revision) { at, nodes = now, m.Nodes.Nodes() }); err != nil {
		return err
	}
	names := make([]string, len(nodes))
	dead := map[string]store.Revision{}
	for i, rec := range nodes {
		names[i] = rec.Key.Name
		if node, ok := rec.Object.(*objectv1.Node); ok && readyOf(node).GetStatus() == unknown {
			dead[rec.Key.Name] = rec.Revision
		}
	}
	m.deaths.read(at, dead)
	now := m.Now()
	judged := m.ledger.Judge(names, now)
	var failed error
	for _, rec := range nodes {
		node, ok := rec.Object.(*objectv1.Node)
		if !ok {
			continue
		}
		next := Condition(readyOf(node), judged[rec.Key.Name], now)
		if next == nil {
			continue
		}
		switch err := m.write(ctx, lead, rec, node, next); {
		case errs.Is(err, errs.Conflict): // it changed, or the election did
		case err != nil && failed == nil:
			failed = errs.Wrap(err, "liveness: %s", rec.Key.Name)
		case err == nil && next.GetStatus() != readyOf(node).GetStatus():
			m.Log.Info("node changed", "node", rec.Key.Name, "ready", next.GetStatus(), "reason", next.GetReason(), "message", next.GetMessage())
		}
	}
	return failed
}

func (m *Monitor) write(ctx context.Context, lead *store.Leadership, rec store.Record, node *objectv1.Node, next *objectv1.NodeCondition) error {
	out := proto.Clone(node).(*objectv1.Node)
	if out.Status == nil {
		out.Status = &objectv1.NodeStatus{}
	}
	out.Status.Conditions = append(slices.DeleteFunc(out.Status.Conditions, func(c *objectv1.NodeCondition) bool {
		return c.GetType() == ConditionReady
	}), next)
	at, err := m.Store.Txn().RequireLeader(lead).Update(rec, out).Commit(ctx)
	if err == nil && next.GetStatus() == unknown {
		m.deaths.declare(rec.Key.Name, at)
	}
	return err
}

func readyOf(node *objectv1.Node) *objectv1.NodeCondition {
	for _, c := range node.GetStatus().GetConditions() {
		if c.GetType() == ConditionReady {
			return c
		}
	}
	return nil
}

// Condition is the Ready condition that a judgement asks for; nil where the present one, nil for none, stands.
func Condition(have *objectv1.NodeCondition, j Judgement, now time.Time) *objectv1.NodeCondition {
	next := &objectv1.NodeCondition{Type: ConditionReady}
	switch j.State {
	case Unjudged:
		return nil
	case Ready:
		next.Status, next.Reason, next.Message = "True", ReasonReady, "the agent's heartbeats say ready"
	case NotReady:
		next.Status, next.Reason, next.Message = "False", ReasonNotReady, j.Reason
		if next.Message == "" {
			next.Message = "the agent's heartbeats say not ready"
		}
	case Silent:
		next.Status, next.Reason, next.Message = "False", ReasonNotReady, "no heartbeat from the agent for more than "+NotReadyAfter.String()
	case Dead:
		next.Status, next.Reason, next.Message = unknown, ReasonDead, "no heartbeat from the agent for more than "+DeadAfter.String()
	}
	switch {
	case have == nil && j.State != Ready:
		return nil // never ready: receipts do not count it yet
	case j.State == Silent && have.GetStatus() == unknown:
		return nil // dead stays dead until it is heard
	case have.GetStatus() == next.Status && have.GetReason() == next.Reason:
		if have.GetMessage() == next.Message || now.Sub(have.GetLastHeartbeatTime().AsTime()) < messageEvery {
			return nil
		}
	}
	next.LastTransitionTime = timestamppb.New(now.Truncate(time.Second))
	if have.GetStatus() == next.Status {
		next.LastTransitionTime = have.GetLastTransitionTime()
	}
	if !j.Heard.IsZero() {
		next.LastHeartbeatTime = timestamppb.New(j.Heard.Truncate(time.Second))
	} else {
		next.LastHeartbeatTime = have.GetLastHeartbeatTime()
	}
	return next
}
