// A receiver of walhook's requests: verifies the signature, drops repeats, answers 204, and works then.
//
//	WEBHOOK_SECRET=whsec_... go run receiver.go [PORT]
//
// Go's standard library alone. Prints the port, then one line of JSON for each event that is new. What to copy from
// it is verify; what stands around it is a toy: a real receiver stores the event and its id in one transaction before
// it answers.
package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	tolerance    = 5 * time.Minute
	bodyMaxBytes = 2 << 20
	seenMax      = 100_000
	keyMinBytes  = 24
)

// keyOf takes whsec_ and base64, in either alphabet, as the key itself, and any other text as it stands. It returns an
// error where that is none: with an empty key anybody could sign.
func keyOf(secret string) ([]byte, error) {
	secret = strings.TrimSpace(secret)
	if !strings.HasPrefix(secret, "whsec_") {
		return []byte(secret), nil
	}
	text := strings.TrimRight(strings.TrimPrefix(secret, "whsec_"), "=")
	key, err := base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/").Replace(text))
	if err == nil && len(key) < keyMinBytes {
		err = fmt.Errorf("it has fewer than %d bytes", keyMinBytes)
	}
	return key, err
}

// verify returns the event's id, or an error: the request is not walhook's, or is an old one that somebody kept.
//
// Standard Webhooks: base64 of the HMAC-SHA256 of `id.timestamp.body`, behind `v1,`. While a secret is being rotated
// there are several signatures, separated by spaces, of which one has to match. body is the bytes as they came.
func verify(key []byte, headers http.Header, body []byte, now time.Time) (string, error) {
	id, timestamp := headers.Get("webhook-id"), headers.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return "", errors.New("no timestamp")
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > tolerance || age < -tolerance {
		return "", errors.New("too old, or a clock is wrong")
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.", id, timestamp)
	mac.Write(body)
	expected := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for _, signature := range strings.Split(headers.Get("webhook-signature"), " ") {
		// In constant time: how long it takes tells nothing of the signature.
		if hmac.Equal([]byte(signature), []byte(expected)) {
			return id, nil
		}
	}
	return "", errors.New("no signature matches")
}

// seen is what came already: the same event may come twice, after a crash or as a replay. Its id says so.
type seen struct {
	lock  sync.Mutex
	ids   map[string]bool
	order []string
}

func (s *seen) isNew(id string) bool {
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.ids[id] {
		return false
	}
	s.ids[id] = true
	s.order = append(s.order, id)
	if len(s.order) > seenMax {
		delete(s.ids, s.order[0])
		s.order = s.order[1:]
	}
	return true
}

// work is what the event is for. It runs beside the answers: a receiver that works first is one that times out.
func work(events <-chan []byte) {
	for body := range events {
		var line bytes.Buffer
		if err := json.Compact(&line, body); err != nil {
			// One event, too deep say, must not end the work on all others.
			fmt.Fprintln(os.Stderr, "no work on an event:", err)
			continue
		}
		fmt.Println(line.String())
	}
}

func main() {
	if strings.TrimSpace(os.Getenv("WEBHOOK_SECRET")) == "" {
		fmt.Fprintln(os.Stderr, "set WEBHOOK_SECRET to the secret in the endpoint's row")
		os.Exit(1)
	}
	key, err := keyOf(os.Getenv("WEBHOOK_SECRET"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "WEBHOOK_SECRET:", err)
		os.Exit(1)
	}
	port := "8080"
	if len(os.Args) > 1 {
		port = os.Args[1]
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)

	events := make(chan []byte, 1_000)
	go work(events)
	known := seen{ids: map[string]bool{}}
	server := http.Server{ReadTimeout: 30 * time.Second}
	server.Handler = http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(response, request.Body, bodyMaxBytes))
		if err != nil {
			response.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		id, err := verify(key, request.Header, body, time.Now())
		if err != nil {
			fmt.Fprintln(os.Stderr, "refused:", err)
			response.WriteHeader(http.StatusUnauthorized)
			return
		}
		if known.isNew(id) {
			events <- body
		}
		response.WriteHeader(http.StatusNoContent)
	})
	fmt.Fprintln(os.Stderr, server.Serve(listener))
	os.Exit(1)
}
