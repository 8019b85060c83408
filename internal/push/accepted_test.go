package push_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"podwire.dev/internal/nodestate"
	"podwire.dev/internal/push"
	"podwire.dev/internal/push/pushtest"
)

// marked publishes rows of a World with marks.
func marked(t *testing.T, hub *push.Hub, revision int64, history nodestate.History, rows ...nodestate.Row) {
	t.Helper()
	p := push.Publication{Version: at(revision), Settled: revision, History: history, PerNode: map[string]nodestate.Delta{"node-1": upsert(rows...)}}
	if err := hub.Publish(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// TestServiceRestartsAfterARestore: a service that begins after the restore knows nothing of the history before. The marks of
// the store tell that what its nodes hold was undone; those of an ordinary restart, that it was not.
func TestServiceRestartsAfterARestore(t *testing.T) {
	before := nodestate.History{{ID: 7, Revision: 10}}
	for name, tt := range map[string]struct {
		after  nodestate.History
		freeze bool
	}{
		"restored":             {nodestate.History{{ID: 7, Revision: 10}, {ID: 8, Revision: 41}}, true},
		"restarted":            {nodestate.History{{ID: 7, Revision: 10}, {ID: 8, Revision: 60}}, false},
		"restored and emptied": {nodestate.History{{ID: 9, Revision: 1}}, true},
		"marks are not known":  {nodestate.History{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub, service := hubFor(t, nodestate.SourceCluster)
				marked(t, hub, 50, before, pod("a", "1"))
				agent := &pushtest.Agent{Source: nodestate.SourceCluster, Node: "node-1", Dir: t.TempDir(), Conn: service.Dial(t, nil)}
				agent.Start(t)
				agent.Await(t, func(k *nodestate.Slice, v nodestate.Version) bool { return k.Len() == 1 && v.History == 7 })
				agent.Kill()
				hub, service = hubFor(t, nodestate.SourceCluster)
				marked(t, hub, 100, tt.after, pod("b", "1"))
				agent.Conn = service.Dial(t, nil)
				agent.Restart(t) // the mark is in the journal
				pass(time.Minute)
				st := agent.Subscriber().Status()
				if st.Frozen != tt.freeze || (st.Held.Revision == 50) != tt.freeze {
					t.Fatalf("%+v", st)
				}
				if tt.freeze && !agent.Subscriber().Accept() {
					t.Error("not accepted")
				}
				agent.Await(t, func(_ *nodestate.Slice, v nodestate.Version) bool { return v.Revision == 100 })
			})
		})
	}
}

// TestAcceptStandsForTheRestore: what was accepted when one slice was frozen is accepted for the others, also after a restart
// of the agent; and for nothing else.
func TestAcceptStandsForTheRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		open := func() *push.Accepted {
			a, err := push.OpenAccepted(dir)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		before := nodestate.History{{ID: 7, Revision: 10}}
		restored := nodestate.History{{ID: 7, Revision: 10}, {ID: 8, Revision: 31}, {ID: 9, Revision: 33}}
		sources := []nodestate.Source{nodestate.SourceCluster, nodestate.SourcePolicy}
		row := map[nodestate.Source]nodestate.Row{
			nodestate.SourceCluster: pod("a", "1"),
			nodestate.SourcePolicy:  nodestate.Subject{PodUID: "a", Ingress: nodestate.Side{Mode: nodestate.SideOpen}, Egress: nodestate.Side{Mode: nodestate.SideOpen}},
		}
		hubs := map[nodestate.Source]*push.Hub{}
		agents := map[nodestate.Source]*pushtest.Agent{}
		for _, s := range sources {
			hub, service := hubFor(t, s)
			marked(t, hub, 50, before, row[s])
			a := &pushtest.Agent{Source: s, Node: "node-1", Dir: dir, Conn: service.Dial(t, nil), Accepted: open()}
			a.Start(t)
			a.Await(t, func(k *nodestate.Slice, _ nodestate.Version) bool { return k.Len() == 1 })
			hubs[s], agents[s] = hub, a
		}
		back := func(s nodestate.Source, revision int64, h nodestate.History) {
			t.Helper()
			p := push.Publication{Version: at(revision), Settled: revision, Back: true, History: h, PerNode: map[string]nodestate.Delta{
				"node-1": {Removes: []nodestate.Ref{nodestate.RefOf(row[s])}},
			}}
			if err := hubs[s].Publish(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			pass(time.Minute)
		}
		status := func(s nodestate.Source) push.SubscriberStatus { return agents[s].Subscriber().Status() }
		back(nodestate.SourceCluster, 32, restored[:2])
		if !status(nodestate.SourceCluster).Frozen || status(nodestate.SourcePolicy).Frozen {
			t.Fatalf("%+v, %+v", status(nodestate.SourceCluster), status(nodestate.SourcePolicy))
		}
		all := []push.SubscriberStatus{status(nodestate.SourceCluster), status(nodestate.SourcePolicy)}
		if err := open().Note("/user/ada", time.Now(), all); err != nil {
			t.Fatal(err)
		}
		agents[nodestate.SourceCluster].Subscriber().Accept()
		agents[nodestate.SourceCluster].Await(t, func(k *nodestate.Slice, _ nodestate.Version) bool { return k.Len() == 0 })
		agents[nodestate.SourcePolicy].Accepted = open()
		agents[nodestate.SourcePolicy].Restart(t)
		back(nodestate.SourcePolicy, 34, restored)
		if st := status(nodestate.SourcePolicy); st.Frozen || st.Held.Revision != 34 || st.Held.History != 9 {
			t.Errorf("not taken: %+v", st)
		}
		// Another restore, of a backup that was made since, is another matter.
		marked(t, hubs[nodestate.SourcePolicy], 60, nil, row[nodestate.SourcePolicy])
		agents[nodestate.SourcePolicy].Await(t, func(_ *nodestate.Slice, v nodestate.Version) bool { return v.Revision == 60 })
		back(nodestate.SourcePolicy, 40, append(restored, nodestate.Mark{ID: 10, Revision: 39}))
		if st := status(nodestate.SourcePolicy); !st.Frozen {
			t.Errorf("a second restore is followed unasked: %+v", st)
		}
		if err := os.WriteFile(filepath.Join(dir, "accepted.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		open() // damaged: as none
	})
}
