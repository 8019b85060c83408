package liveness

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/cluster/internal/silence"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// clock steps in ticks, as the process does.
type clock struct {
	t      *testing.T
	ledger *Ledger
	now    time.Time
}

func newClock(t *testing.T) *clock {
	c := &clock{t: t, ledger: NewLedger(), now: start}
	c.ledger.Restart(start)
	return c
}

func (c *clock) step(d time.Duration, beats ...Beat) {
	for end := c.now.Add(d); c.now.Before(end); {
		c.now = c.now.Add(silence.Tick)
		if c.ledger.Tick(c.now) {
			c.t.Fatal("a tick in time counts as late")
		}
		for _, b := range beats {
			c.ledger.Beat(b, c.now)
		}
	}
}

func (c *clock) want(node string, want State) {
	c.t.Helper()
	if got := c.ledger.Judge([]string{"a", "b"}, c.now)[node].State; got != want {
		c.t.Errorf("at +%s %s is judged %d, want %d", c.now.Sub(start), node, got, want)
	}
}

func TestSilence(t *testing.T) {
	c := newClock(t)
	a, b := Beat{Node: "a", Ready: true}, Beat{Node: "b", Ready: false, Reason: "waits for policy"}
	c.step(time.Second, a, b)
	c.want("a", Ready)
	c.want("b", NotReady)
	if j := c.ledger.Judge([]string{"b", "a"}, c.now)["b"]; j.Reason != "waits for policy" || !j.Heard.Equal(c.now) {
		t.Errorf("b is judged %+v: the agent's reason and time are lost", j)
	}
	c.step(NotReadyAfter-silence.Tick, b)
	c.want("a", Ready)
	c.step(silence.Tick, b)
	c.want("a", Silent)
	c.want("b", NotReady)
	c.step(DeadAfter-NotReadyAfter-silence.Tick, b)
	c.want("a", Silent)
	c.step(silence.Tick, b)
	c.want("a", Dead)
	c.step(silence.Tick, a, b)
	c.want("a", Ready)
}

func TestFreshPeriodOfANewLeader(t *testing.T) {
	c := newClock(t)
	c.step(silence.ReconnectAfter-silence.Tick, Beat{Node: "b", Ready: true})
	c.want("a", Unjudged)
	c.step(silence.Tick, Beat{Node: "b", Ready: true})
	c.want("a", Silent)
	c.step(DeadAfter-NotReadyAfter, Beat{Node: "b", Ready: true})
	c.want("a", Dead)
	c.want("b", Ready)

	c.ledger.Restart(c.now)
	c.want("a", Unjudged)
	c.want("b", Unjudged)
}

func TestOwnStallIsNobodysDeath(t *testing.T) {
	c := newClock(t)
	c.step(time.Second, Beat{Node: "a", Ready: true}, Beat{Node: "b", Ready: true})
	c.now = c.now.Add(2 * time.Second)
	if !c.ledger.Tick(c.now) {
		t.Fatal("a tick that comes 2 s late is not noticed")
	}
	c.want("a", Ready)
	c.step(NotReadyAfter)
	c.want("a", Silent)

	c.now = c.now.Add(time.Minute) // long enough to lose every connection
	if !c.ledger.Tick(c.now) {
		t.Fatal("a tick that comes a minute late is not noticed")
	}
	c.step(silence.ReconnectAfter-silence.Tick, Beat{Node: "b", Ready: true})
	c.want("a", Ready)
	c.step(silence.Tick)
	c.want("a", Silent)
	c.want("b", Ready)
}

func TestCondition(t *testing.T) {
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(start.Add(d)) }
	ready := &objectv1.NodeCondition{Type: "Ready", Status: "True", Reason: ReasonReady, Message: "the agent's heartbeats say ready", LastTransitionTime: at(-time.Hour), LastHeartbeatTime: at(-time.Hour)}
	dead := &objectv1.NodeCondition{Type: "Ready", Status: "Unknown", Reason: ReasonDead, LastTransitionTime: at(-time.Hour)}
	sick := &objectv1.NodeCondition{Type: "Ready", Status: "False", Reason: ReasonNotReady, Message: "old", LastTransitionTime: at(-time.Hour), LastHeartbeatTime: at(-time.Second)}
	heard := start.Add(-time.Second)
	cases := []struct {
		name string
		have *objectv1.NodeCondition
		j    Judgement
		want *objectv1.NodeCondition // nil: nothing is written
	}{
		{"nothing known", ready, Judgement{State: Unjudged}, nil},
		{"never ready, not ready", nil, Judgement{State: NotReady, Reason: "x"}, nil},
		{"never ready, silent", nil, Judgement{State: Silent}, nil},
		{"never ready, dead", nil, Judgement{State: Dead}, nil},
		{"first ready", nil, Judgement{State: Ready, Heard: heard},
			&objectv1.NodeCondition{Type: "Ready", Status: "True", Reason: ReasonReady, Message: "the agent's heartbeats say ready", LastTransitionTime: at(0), LastHeartbeatTime: timestamppb.New(heard)}},
		{"still ready", ready, Judgement{State: Ready, Heard: heard}, nil},
		{"silent", ready, Judgement{State: Silent, Heard: heard},
			&objectv1.NodeCondition{Type: "Ready", Status: "False", Reason: ReasonNotReady, Message: "no heartbeat from the agent for more than 1s", LastTransitionTime: at(0), LastHeartbeatTime: timestamppb.New(heard)}},
		{"dead", ready, Judgement{State: Dead},
			&objectv1.NodeCondition{Type: "Ready", Status: "Unknown", Reason: ReasonDead, Message: "no heartbeat from the agent for more than 3s", LastTransitionTime: at(0), LastHeartbeatTime: at(-time.Hour)}},
		{"dead stays dead in silence", dead, Judgement{State: Silent}, nil},
		{"dead is heard again", dead, Judgement{State: NotReady, Reason: "booting", Heard: heard},
			&objectv1.NodeCondition{Type: "Ready", Status: "False", Reason: ReasonNotReady, Message: "booting", LastTransitionTime: at(0), LastHeartbeatTime: timestamppb.New(heard)}},
		{"another message so soon", sick, Judgement{State: NotReady, Reason: "new", Heard: heard}, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := Condition(c.have, c.j, start); !proto.Equal(got, c.want) {
				t.Errorf("condition is %v, want %v", got, c.want)
			}
		})
	}
	later := Condition(sick, Judgement{State: NotReady, Reason: "new", Heard: start}, start.Add(messageEvery))
	if later.GetMessage() != "new" || !proto.Equal(later.GetLastTransitionTime(), sick.LastTransitionTime) {
		t.Errorf("a new message after a while gives %v: it is no transition", later)
	}
}
