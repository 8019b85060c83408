package rpc

import (
	"fmt"
	"testing"

	"podwire.dev/internal/errs"
)

// gRPC wraps the error of the last attempt in words about its retries, which help nobody and hid the details.
func TestRetriesDoNotShow(t *testing.T) {
	sent := toStatus(t.Context(), errs.New(errs.Unavailable, "ipam: no World yet"))
	got := fromStatus(fmt.Errorf("max retries exhausted: failed after 4 attempts: %w", sent))
	if got.Error() != "ipam: no World yet" || !errs.Is(got, errs.Unavailable) {
		t.Errorf("got %v of kind %v", got, errs.KindOf(got))
	}
}
