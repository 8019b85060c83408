package app

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"podwire.dev/services/nodeagent/internal/api"
	"podwire.dev/services/nodeagent/internal/kernel/host"
)

// hostSettings serialises what is done to the host's settings, and remembers what somebody else changed.
type hostSettings struct {
	now func() time.Time

	mu     sync.Mutex
	door   Host
	writes int64
	said   string
	// good are the settings that were as wanted when they were looked at last.
	good map[string]bool
	// mended are the settings that were put back, by name.
	mended map[string]api.Mending
}

func newHostSettings(door Host) *hostSettings {
	return &hostSettings{now: time.Now, door: door, good: map[string]bool{}, mended: map[string]api.Mending{}}
}

// apply makes every setting as wanted.
func (h *hostSettings) apply(log *slog.Logger) {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.look(log)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != h.said && err != nil {
		log.Error("host settings are not as they should be, trying again", "error", err)
	}
	h.said = text
}

func (h *hostSettings) look(log *slog.Logger) error {
	found, err := h.door.Check()
	if err != nil {
		return err
	}
	n, err := h.door.Apply()
	h.writes += int64(n)
	if err != nil {
		return err
	}
	made := found
	if n > 0 {
		if made, err = h.door.Check(); err != nil {
			return err
		}
	}
	good := map[string]bool{}
	for _, s := range made {
		good[s.Name] = s.OK()
	}
	for _, s := range found {
		if !s.OK() && h.good[s.Name] && good[s.Name] {
			h.note(s, log)
		}
	}
	h.good = good
	return nil
}

// note remembers that a setting was as it should be, was found otherwise, and is as it should be again.
func (h *hostSettings) note(s host.State, log *slog.Logger) {
	m := h.mended[s.Name]
	h.mended[s.Name] = api.Mending{Name: s.Name, Found: s.Actual, Wanted: s.Wanted, Times: m.Times + 1, Last: h.now()}
	log.Warn("somebody changed a host setting, it was put back", "setting", s.Name, "found", s.Actual, "wanted", s.Wanted)
}

// Check implements api.Settings.
func (h *hostSettings) Check() ([]host.State, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.door.Check()
}

// remembered is how long a mended setting is told of.
const remembered = time.Hour

// Mended implements api.Settings: what was put back within the last hour.
func (h *hostSettings) Mended() []api.Mending {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []api.Mending
	for _, m := range h.mended {
		if h.now().Sub(m.Last) < remembered {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b api.Mending) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Writes counts the settings that were changed since the start.
func (h *hostSettings) Writes() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.writes
}
