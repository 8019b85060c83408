package nodestate

import (
	"slices"
	"testing"
)

func TestHistory(t *testing.T) {
	t.Parallel()
	h := History{{ID: 7, Revision: 10}, {ID: 8, Revision: 20}}
	for _, tt := range []struct {
		revision int64
		at       uint64
		id       uint64
		has      bool
	}{
		{9, 0, 7, true}, // older than what is known
		{10, 7, 7, true},
		{19, 7, 7, true},
		{19, 7, 8, false},
		{20, 8, 8, true},
		{20, 8, 7, false}, // went on under the old mark: undone
		{99, 8, 5, false},
		{99, 8, 0, true},
	} {
		if got := h.At(tt.revision); got != tt.at {
			t.Errorf("At(%d) = %d, want %d", tt.revision, got, tt.at)
		}
		if got := h.Has(tt.revision, tt.id); got != tt.has {
			t.Errorf("Has(%d, %d) = %t", tt.revision, tt.id, got)
		}
	}
	if got := h.IDs(); !slices.Equal(got, []uint64{7, 8}) {
		t.Errorf("IDs() = %v", got)
	}
	if (History)(nil).At(5) != 0 || !(History)(nil).Has(5, 5) {
		t.Error("no marks say nothing")
	}
}
