package app

import (
	"log/slog"
	"testing"
	"time"

	"podwire.dev/services/nodeagent/internal/kernel/host"
)

// A setting that somebody changes is put back before anybody can see it: what is told is that it was.
func TestMendedSettingsAreTold(t *testing.T) {
	t.Parallel()
	const forward = "net/ipv4/ip_forward"
	log := slog.New(slog.DiscardHandler)
	door, now := &host.Fake{}, time.Unix(1_700_000_000, 0)
	h := newHostSettings(door)
	h.now = func() time.Time { return now }
	h.apply(log)
	if h.Writes() == 0 || len(h.Mended()) != 0 {
		t.Fatalf("the start wrote %d settings, and told of %v: that is no change by somebody else", h.Writes(), h.Mended())
	}
	for range 2 {
		now = now.Add(time.Minute)
		door.Set(forward, "0")
		h.apply(log)
	}
	got := h.Mended()
	if len(got) != 1 || got[0].Name != forward || got[0].Found != "0" || got[0].Wanted != "1" || got[0].Times != 2 || !got[0].Last.Equal(now) {
		t.Errorf("mended: %+v", got)
	}
	states, err := h.Check()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		if !s.OK() {
			t.Errorf("not put back: %+v", s)
		}
	}
	now = now.Add(remembered)
	h.apply(log)
	if got := h.Mended(); len(got) != 0 {
		t.Errorf("after an hour it is still told: %+v", got)
	}
}
