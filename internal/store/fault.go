package store

import (
	"context"
	"errors"
	"fmt"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store/kv"
)

// Causes that a caller tells apart with errors.Is.
var (
	// ErrCompacted says that the revision asked for is older than what the store keeps: list again, and watch from
	// the list's revision. Its kind is OutOfRange.
	ErrCompacted = kv.ErrCompacted
	// ErrFutureRevision says that a read asked for a revision that the store has not reached.
	ErrFutureRevision = kv.ErrFutureRevision
	// ErrAmbiguous says that a transaction may or may not have been committed. Calling Commit on the same Txn again
	// finds out.
	ErrAmbiguous = errors.New("unknown whether the transaction was committed")
	// ErrLost says that a lease was lost, and with it what hung on it: a registration, an election.
	ErrLost = errors.New("lease was lost")
)

// FailedCompare says which condition of a transaction did not hold. It is found in a Conflict with errors.As.
type FailedCompare struct {
	// Object is the key of the compared object, and zero if the key belongs to none (an election, a blob).
	Object Key
	// Path is the compared key in etcd.
	Path string
	// Want is the revision asked for, 0 for absence, Present for mere presence.
	Want Revision
	// Have is the revision found; 0 is absent.
	Have Revision
}

// Present is FailedCompare.Want of a condition that only asked for the key to be there.
const Present Revision = -1

// Error names the key, what was expected and what was found.
func (f *FailedCompare) Error() string {
	name := f.Path
	if f.Object != (Key{}) {
		name = f.Object.String()
	}
	switch {
	case f.Want == 0:
		return fmt.Sprintf("%s exists already, at revision %d", name, f.Have)
	case f.Have == 0:
		return fmt.Sprintf("%s does not exist", name)
	default:
		return fmt.Sprintf("%s was changed meanwhile: it is at revision %d, not %d", name, f.Have, f.Want)
	}
}

// wrap gives an engine's error its kind and puts the noun in front.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	kind := errs.KindOf(err)
	switch {
	case errors.Is(err, kv.ErrCompacted):
		kind = errs.OutOfRange
	case errors.Is(err, kv.ErrFutureRevision), errors.Is(err, kv.ErrTooLarge):
		kind = errs.Invalid
	case errors.Is(err, kv.ErrNoSpace):
		kind = errs.Exhausted
	case errors.Is(err, kv.ErrDenied):
		kind = errs.Denied
	case errors.Is(err, kv.ErrUnavailable), errors.Is(err, kv.ErrLeaseNotFound), errors.Is(err, ErrLost),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		kind = errs.Unavailable
	}
	return errs.WrapAs(kind, err, format, args...)
}
