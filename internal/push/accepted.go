package push

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
)

// Accepted remembers which store a node was told to take although it went backwards, so that a slice which freezes later on
// the same store takes it as well (docs/adr/0008). All subscribers of a node share one. It is kept in a file.
type Accepted struct {
	path string

	mu   sync.Mutex
	last Acceptance
}

// Acceptance is what was accepted last; the zero Acceptance is none.
type Acceptance struct {
	// Identity accepted it, At.
	Identity string    `json:"identity"`
	At       time.Time `json:"at"`
	// Stores are those that the frozen slices were offered: their cluster, and their newest mark then.
	Stores []AcceptedStore `json:"stores"`
	// Held is under which cluster and mark each slice of the node held what it held.
	Held map[nodestate.Source]AcceptedStore `json:"held"`
}

// AcceptedStore is a point in a store's history.
type AcceptedStore struct {
	ClusterID uint64 `json:"clusterID,string"`
	Mark      uint64 `json:"mark,string"`
}

// OpenAccepted reads what was accepted from a directory, that of the journals. A file that is damaged is as good as none: what
// freezes then waits to be accepted again.
func OpenAccepted(dir string) (*Accepted, error) {
	a := &Accepted{path: filepath.Join(dir, "accepted.json")}
	text, err := os.ReadFile(a.path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "push: what was accepted")
	}
	if json.Unmarshal(text, &a.last) != nil {
		a.last = Acceptance{}
	}
	return a, nil
}

// Note keeps that identity accepted what the frozen ones among a node's slices are offered. An error says that it is not on
// disk: a restart of the agent forgets it.
func (a *Accepted) Note(identity string, at time.Time, all []SubscriberStatus) error {
	next := Acceptance{Identity: identity, At: at, Held: map[nodestate.Source]AcceptedStore{}}
	for _, st := range all {
		next.Held[st.Source] = AcceptedStore{st.Held.ClusterID, st.Held.History}
		if offered := (AcceptedStore{st.Offered.ClusterID, st.Offered.History}); st.Frozen && offered.Mark != 0 && !slices.Contains(next.Stores, offered) {
			next.Stores = append(next.Stores, offered)
		}
	}
	if len(next.Stores) == 0 {
		return nil // nothing that could be recognised
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = next
	text, err := json.Marshal(next)
	if err == nil {
		err = replace(a.path, append(text, '\n'))
	}
	return errs.WrapAs(errs.Unavailable, err, "push: what was accepted")
}

// replace writes a file whole or not at all.
func replace(path string, text []byte) error {
	next := path + ".new"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// covers says whether the slice of a source, which holds held, may take a snapshot of a cluster with that ancestry, since it
// comes from a store that was accepted when the slice held under the same mark as now.
func (a *Accepted) covers(source nodestate.Source, held nodestate.Version, cluster uint64, ancestry []uint64) (Acceptance, bool) {
	if a == nil {
		return Acceptance{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if before, ok := a.last.Held[source]; !ok || before != (AcceptedStore{held.ClusterID, held.History}) {
		return Acceptance{}, false
	}
	comes := slices.ContainsFunc(a.last.Stores, func(s AcceptedStore) bool {
		return s.ClusterID == cluster && slices.Contains(ancestry, s.Mark)
	})
	return a.last, comes
}
