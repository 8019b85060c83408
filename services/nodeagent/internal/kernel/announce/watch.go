package announce

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/packet"

	"podwire.dev/internal/errs"
)

// Advertise sends one gratuitous ARP, or one unsolicited neighbour advertisement, for each of the addresses that is held
// still. Switches and hosts lose frames: send each three times, spaced (RFC 5227 section 2.3 asks for two, 2 s apart).
func (a *Announcer) Advertise(addrs []netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, err := a.find()
	if err != nil {
		return err
	}
	for _, address := range addrs {
		if _, held := a.held[address]; !held {
			continue
		}
		frame := announcement(address, l.MAC)
		conn := a.nd
		if address.Is4() {
			conn = a.arp
		}
		if _, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]}); err != nil {
			return errs.WrapAs(errs.Unavailable, err, "announce %s on %s", address, a.link)
		}
	}
	return nil
}

// Watch hears other nodes announce, gives a held address up at once, and then calls yielded, from one goroutine at a time,
// until ctx ends (nil) or the link is gone (an error).
func (a *Announcer) Watch(ctx context.Context, yielded func(Claim)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var readers sync.WaitGroup
	var calls sync.Mutex
	for _, c := range []*packet.Conn{a.arp, a.nd} {
		_ = c.SetReadDeadline(time.Time{})
		stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		readers.Go(func() {
			err := a.read(c, func(claim Claim) {
				calls.Lock()
				defer calls.Unlock()
				yielded(claim)
			})
			if ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	readers.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return errs.WrapAs(errs.Unavailable, err, "announce on %s: listen", a.link)
	}
	return nil
}

// maxFrame holds what the filters let through.
const maxFrame = 256

func (a *Announcer) read(c *packet.Conn, yielded func(Claim)) error {
	buf := make([]byte, maxFrame)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		address, mac, ok := parse(buf[:n])
		if !ok {
			continue
		}
		claim, given, err := a.yield(address, mac)
		if err != nil {
			return err
		}
		if given {
			yielded(claim)
		}
	}
}

// yield gives an address up if it is held and another claims it.
func (a *Announcer) yield(address netip.Addr, by [6]byte) (Claim, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	epoch, held := a.held[address]
	if !held {
		return Claim{}, false, nil
	}
	l, err := a.find()
	if err != nil || l.MAC == by {
		return Claim{}, false, err
	}
	if err := a.conn.Do(row(l.Index, address).Delete()); err != nil {
		return Claim{}, false, errs.Wrap(err, "announce on %s: yield %s", a.link, address)
	}
	delete(a.held, address)
	a.yielded[address] = epoch
	return Claim{Address: address, By: by, Epoch: epoch}, true, nil
}
