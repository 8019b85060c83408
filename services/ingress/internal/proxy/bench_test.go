package proxy_test

import (
	"fmt"
	"net/http"
	"testing"

	"podwire.dev/services/ingress/internal/proxy"
	"podwire.dev/services/ingress/internal/route"
)

// BenchmarkRequest compares a request through the front with the same request straight to the endpoint, over kept
// connections.
func BenchmarkRequest(b *testing.B) {
	s := newSite(b, proxy.Options{Limits: limits()})
	end := backend(b, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	s.change(func(w *route.World) {
		web(w)
		endpoints(w, 1, addressOf(end))
		for i := range 1000 {
			w.SetIngress(ingress(fmt.Sprint("i", i), fmt.Sprintf("h%d.example", i), "/", nil))
		}
		w.SetIngress(ingress("all", "", "/", nil))
	})
	for name, address := range map[string]string{"straight": addressOf(end), "ingress": s.http} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				c := keeping()
				defer c.CloseIdleConnections()
				for pb.Next() {
					if err := askAny(c, "http://"+address+"/a/b"); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func askAny(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := resp.Body.Read(make([]byte, 8)); resp.StatusCode != 200 {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	return nil
}
